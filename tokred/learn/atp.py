"""Learn the thresholds of ATP-LLaVA (arXiv 2412.00447) in a model whose own weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tokred.data import VQADataset
from tokred.errors import ConfigError, DataError
from tokred.learn.answers import Answered, answer, answer_loss
from tokred.learn.questions import Reached, ask
from tokred.methods.atp import ATP, ATPLoss, atp_loss
from tokred.multimodal import MultimodalHandle

FILE = "atp.safetensors"


class ATPLosses(NamedTuple):
    """What a batch says about the thresholds.

    Attributes:
        total: what is made small.
        language: of the answers.
        budget: the terms about tokens.
        kept: [modules] visual tokens behind every module by the soft masks, averaged over the prompts.
    """

    total: Tensor
    language: Tensor
    budget: ATPLoss
    kept: Tensor


def atp_losses(
    handle: MultimodalHandle, batch: Answered, target: float, lambda_atp: float = 0.05, lambda_target: float = 0.2
) -> ATPLosses:
    """Run a model that is patched with ATP, its modules in training mode, and add up the loss of the paper.

    ``L = L_language + lambda_atp L_atp + lambda_target L_target``, see :func:`tokred.methods.atp.atp_loss`. The soft
    masks of the modules are multiplied, as the later layers see them, and words are not counted.

    Args:
        handle: of the patched model.
        batch: prompts with answers.
        target: visual tokens that should be left, averaged over the modules.
        lambda_atp: weight of the depth term.
        lambda_target: weight of the distance from the target.

    Raises:
        DataError: there is no image in the prompts.
        ConfigError: the modules are not in training mode, so that tokens were dropped and nothing can be learned.
    """
    language = handle.language
    assert language is not None
    assert language.dropping is not None
    before = language.last
    loss = answer_loss(handle.model, batch)
    passage = language.last
    if passage is None or passage is before or not any(passage.images):
        raise DataError(
            "There is no image in the prompts. ATP learns which visual tokens to drop, so every question needs one."
        )
    soft = [stage.soft for stage in passage.stages]
    if not soft or any(mask is None for mask in soft):
        raise ConfigError("The modules of ATP drop tokens now. Call handle.modules.train() before you train them.")
    cut = passage.cut or passage.whole()
    visual = (cut.visual & cut.valid).float()
    masks = cumulative([mask for mask in soft if mask is not None], visual)
    budget = atp_loss(masks, language.dropping.layers, visual.sum(dim=1), target, lambda_atp, lambda_target)
    kept = torch.stack([mask.detach().sum(dim=1).mean() for mask in masks])
    return ATPLosses(loss + budget.total, loss, budget, kept)


def cumulative(soft: Sequence[Tensor], visual: Tensor) -> list[Tensor]:
    """What is left of every visual token behind each module: products of the masks [B, T], zero for words.

    >>> halves = torch.full((1, 3), 0.5)
    >>> [mask.tolist() for mask in cumulative([halves, halves], torch.tensor([[0.0, 1.0, 1.0]]))]
    [[[0.0, 0.5, 0.5]], [[0.0, 0.25, 0.25]]]
    """
    left, found = visual, []
    for mask in soft:
        left = left * mask.float()
        found.append(left)
    return found


class ATPTask:
    """The modules of a patched model, as the training loop wants them. Everything else is frozen.

    Stage settings: ``target``, ``lambda_atp`` and ``lambda_target``; other names only tell recipes apart.

    Args:
        handle: of the patched model.
        processor: that of the model.
        trained: questions to learn from.
        held: questions to watch progress on.
        batch_size: questions a batch, where nothing is learned.
    """

    def __init__(
        self, handle: MultimodalHandle, processor: Any, trained: VQADataset, held: VQADataset, batch_size: int = 32
    ) -> None:
        assert handle.modules is not None, "ATP has modules"
        self.handle, self.processor, self.trained, self.held = handle, processor, trained, held
        self.batch_size = batch_size
        self.model: nn.Module = handle.modules
        self.target, self.lambda_atp, self.lambda_target = 0.0, 0.05, 0.2

    @property
    def examples(self) -> int:
        """Questions in one epoch."""
        return len(self.trained)

    def begin_stage(self, settings: dict[str, Any]) -> None:
        """Take the target and the weights of the loss."""
        self.target = float(settings["target"])
        self.lambda_atp = float(settings.get("lambda_atp", self.lambda_atp))
        self.lambda_target = float(settings.get("lambda_target", self.lambda_target))

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Answered]:
        """Yield one epoch of shuffled questions, the last incomplete batch left out."""
        order = torch.randperm(len(self.trained), generator=generator).tolist()
        inner = self.handle.model
        device, dtype = next((p.device, p.dtype) for p in inner.parameters())
        for start in range(0, len(order) // batch_size * batch_size, batch_size):
            examples = [self.trained[i] for i in order[start : start + batch_size]]
            yield answer(self.processor, examples).to(device, dtype)

    def loss(self, batch: Answered) -> Tensor:
        """Return the loss of the paper."""
        return atp_losses(self.handle, batch, self.target, self.lambda_atp, self.lambda_target).total

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Answer the questions that were set aside, tokens really dropped."""
        reached = self.measure(model)
        return {"exact_match": reached.answers.percent, "kept": self.kept(reached)}

    def export(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Write the modules, and measure them."""
        save_modules(model, folder / FILE)
        return self.evaluate(model)

    def measure(self, model: nn.Module) -> Reached:
        """Answer the questions that were set aside with other modules, tokens really dropped."""
        with deciding(self.model, model):
            return ask(self.handle, self.processor, self.held, self.batch_size)

    def kept(self, reached: Reached) -> float:
        """Visual tokens behind a module, averaged over modules and questions: what the target is compared with."""
        language = self.handle.language
        assert language is not None
        assert language.dropping is not None
        layers = language.dropping.layers
        return sum(reached.per_layer[layer] for layer in layers) / len(layers)


@contextmanager
def deciding(own: nn.Module, other: nn.Module) -> Iterator[None]:
    """``own`` has the weights of ``other``, and drops tokens; afterwards it is as it was."""
    before, mode = {name: value.clone() for name, value in own.state_dict().items()}, own.training
    own.load_state_dict(other.state_dict())
    own.eval()
    try:
        yield
    finally:
        own.load_state_dict(before)
        own.train(mode)


def save_modules(modules: nn.Module, path: Path) -> None:
    """Write what ``tokred.ATP(weights=path)`` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in modules.state_dict().items()}, path)


def require_layers(method: ATP, depth: int) -> None:
    """Refuse layers that the model does not have.

    Raises:
        ConfigError: with what is allowed.
    """
    try:
        if not method.stages(depth):
            raise ValueError(f"A language model of {depth} layers has no room for a module of ATP.")
    except ValueError as error:
        raise ConfigError(f"atp: {error}") from error
