"""Finding the encoder inside a model and describing it: what every family of foreign models provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokred.adapters.parts import BlockParts, BlockRegistry
from tokred.adapters.site import Reduction, Site
from tokred.errors import UnsupportedModelError
from tokred.shape import BlockShape, ModelShape

Undo = Callable[[], object]


class Tower(ABC):
    """One stack of transformer blocks inside a model, as patching sees it.

    Attributes:
        module: the module that holds the blocks.
        blocks: the blocks, in the order in which they run.
        parts: how each block is put together.
        shape: numbers for cost and schedules.
        family: name of the adapter, for messages.
        padding_in_mask: the attention mask that the blocks get marks padding tokens.
        classifies: the logits of a method can take the place of the model's.
        site: what runs each block.
        surrounding: the model in which the tower was found.
    """

    family: str = "registered blocks"
    padding_in_mask: bool = False
    classifies: bool = False
    site: type[Site] = Site

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module], parts: Sequence[BlockParts]) -> None:
        self.module = module
        self.blocks = list(blocks)
        self.parts = list(parts)
        self.surrounding = module

    @cached_property
    def shape(self) -> ModelShape:
        """Numbers for cost and schedules."""
        return self.measure()

    @abstractmethod
    def measure(self) -> ModelShape:
        """Read the shape off the modules, without running them."""

    @abstractmethod
    def example(self) -> Any:
        """A tiny random input of the whole tower (batch 1), on its device, for the self-check."""

    @abstractmethod
    def run(self, example: Any) -> Tensor:
        """Run the tower on :meth:`example`."""

    def evaluate(self) -> Tensor:
        """Run the tower on its example as in evaluation, and leave modes as they were."""
        training = {module: module.training for module in self.module.modules()}
        self.module.eval()
        try:
            with torch.no_grad():
                return self.run(self.example())
        finally:
            for module, mode in training.items():
                module.training = mode

    def install(self, reduction: Reduction) -> list[Undo]:
        """Adapt what surrounds the blocks (pooling, intermediate features); returns what takes it back."""
        return []


class Adapter(ABC):
    """All knowledge of one family of foreign models."""

    name: str

    @abstractmethod
    def tower(self, module: nn.Module) -> Tower | None:
        """The tower that ``module`` itself is, or ``None`` if this family does not know it."""

    def text_tower(self, module: nn.Module) -> Tower | None:
        """The text tower that ``module`` itself is, or ``None`` if this family does not know it."""
        return None

    def refusal(self, model: nn.Module) -> str:
        """Why no encoder in ``model`` can be reduced, and what to try; empty where this family does not know."""
        return ""

    @abstractmethod
    def supported(self) -> list[str]:
        """What this family supports, for messages."""


class AdapterRegistry:
    """Families in the order in which they are asked; those of other packages join through ``tokred.adapters``."""

    def __init__(self) -> None:
        self._own: list[Adapter] = []
        self.blocks = BlockRegistry()

    @cached_property
    def _foreign(self) -> list[Adapter]:
        return [entry.load()() for entry in entry_points(group="tokred.adapters")]

    def add(self, adapter: Adapter) -> None:
        """Make a family known; later ones are asked first."""
        self._own.insert(0, adapter)

    def all(self) -> list[Adapter]:
        """All families."""
        return [*self._foreign, *self._own]


registry = AdapterRegistry()


def find_tower(model: nn.Module, kind: Literal["vision", "text"] = "vision") -> Tower:
    """Find the one tower of a kind in ``model``.

    Raises:
        UnsupportedModelError: there is none, or there are several.
    """
    towers: list[tuple[str, Tower]] = []
    covered: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module in covered:
            continue
        for adapter in registry.all():
            tower = adapter.tower(module) if kind == "vision" else adapter.text_tower(module)
            if tower is not None:
                towers.append((path, tower))
                covered.update(module.modules())
                break
    if len(towers) == 1:
        towers[0][1].surrounding = model
        return towers[0][1]
    if towers:
        names = ", ".join(f"{path or 'the model itself'} ({type(t.module).__name__})" for path, t in towers)
        raise UnsupportedModelError(f"{type(model).__name__} holds several encoders: {names}. Patch one of them.")
    if kind == "text":
        raise UnsupportedModelError(
            f"{type(model).__name__} has no text tower that is known here. Text towers are supported in CLIP-like "
            "models of open_clip and transformers; leave tower='text' out to reduce the vision tower."
        )
    for adapter in registry.all():
        refusal = adapter.refusal(model)
        if refusal:
            raise UnsupportedModelError(f"{type(model).__name__}: {refusal}")
    supported = "; ".join(f"{a.name}: {', '.join(a.supported())}" for a in registry.all())
    raise UnsupportedModelError(
        f"{type(model).__name__}: no adapter for {_suspects(model)}. Supported: {supported}. "
        "Teach tokred a block class of your own with tokred.register_adapter."
    )


def measure_block(block: nn.Module, parts: BlockParts) -> BlockShape:
    """Read the cost-relevant sizes off the modules of one block."""
    attention = parts.attention_modules(block)
    reader = parts.reader
    attention_weights, attention_features = linear_size(attention)
    mlp_weights, mlp_features = linear_size(parts.mlp_modules(block))
    return BlockShape(
        attention_weights=attention_weights,
        attention_width=sum(reader.width(attn) for attn in attention),
        mlp_weights=mlp_weights,
        heads=reader.heads(attention[0]),
        head_dim=reader.head_dim(attention[0]),
        attention_features=attention_features,
        mlp_features=mlp_features,
        parallel=not parts.mlp,
        reads=reader.reads(attention[0]),
    )


def linear_size(modules: Sequence[nn.Module]) -> tuple[int, int]:
    """Multiply-accumulates per token, and numbers written per token, of all linear layers in ``modules``."""
    weights = features = 0
    for module in {m for parent in modules for m in parent.modules()}:
        packed = getattr(module, "in_proj_weight", None)  # queries, keys and values in one parameter
        if isinstance(packed, nn.Parameter):
            weights += packed.numel()
            features += packed.shape[0]
        out = getattr(module, "out_features", None)
        wraps = any(hasattr(inner, "out_features") for inner in module.modules() if inner is not module)  # LoRA
        if isinstance(out, int) and isinstance(module.in_features, int) and not wraps:
            weights += out * module.in_features
            features += out
    return weights, features


def _suspects(model: nn.Module) -> str:
    """The classes of what looks like the blocks of ``model``."""
    classes: dict[str, None] = {}
    for module in model.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            classes.update(dict.fromkeys(type(child).__name__ for child in module))
    found = [name for name in classes if "Block" in name or "Layer" in name or "Stage" in name] or list(classes)
    return "blocks of class " + ", ".join(found[:4]) if found else "it: it has no list of blocks"


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters of ``module`` lie."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
