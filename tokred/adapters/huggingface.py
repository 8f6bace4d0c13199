"""Vision encoders of transformers, and the models around them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokred.adapters.base import Adapter, Tower, Undo, linear_size, measure_block, registry
from tokred.adapters.flops import FlopCounter
from tokred.adapters.huggingface_attention import is_pretrained
from tokred.adapters.huggingface_blocks import FAMILIES, TEXT_FAMILIES, Family, find_blocks, require_parts
from tokred.adapters.huggingface_inputs import same_pictures, takes_pictures
from tokred.adapters.huggingface_parts import PackedParts
from tokred.adapters.huggingface_pool import Averaged, one_row_a_patch, reduced_mask, weigh_patches
from tokred.adapters.huggingface_refused import refusal
from tokred.adapters.packed import PackedSite
from tokred.adapters.site import Reduction, Site
from tokred.adapters.surroundings import RunningMethod, SizedKeys
from tokred.errors import UnsupportedModelError
from tokred.shape import ModelShape

# what comes behind the encoder, by class: takes the class token or pools itself, or averages the patches
_READS_POOLED = ("ViTForImageClassification", "ViTMSNForImageClassification", "BeitForImageClassification")
_READS_POOLED += ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "VivitForVideoClassification")
_AVERAGES = ("Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification", "IJepaForImageClassification")
_AVERAGES += ("CLIPForImageClassification", "MetaClip2ForImageClassification", "SiglipForImageClassification")
_AVERAGES += ("VideoMAEForVideoClassification",)
_PRODUCTS = (nn.Conv2d, nn.Conv3d, nn.Linear)


class HuggingFaceTower(Tower):
    """An encoder of transformers, alone or inside a model that takes ``pixel_values``.

    Attributes:
        encoder: the module that embeds the patches and runs the blocks.
        kind: what is known about this kind of encoder.
    """

    family = "transformers"
    padding_in_mask = True

    def __init__(self, module: nn.Module, encoder: Any, blocks: Sequence[nn.Module], kind: Family) -> None:
        super().__init__(module, blocks, [kind.parts] * len(blocks))
        self.site = PackedSite if isinstance(kind.parts, PackedParts) else Site
        self.encoder = encoder
        self.kind = kind

    def measure(self) -> ModelShape:
        """Read the sizes off the config and the modules."""
        config = self.encoder.config
        blocks = tuple(measure_block(block, self.kind.parts) for block in self.blocks)
        suffix = self.kind.suffix(config)
        prefix = self.kind.prefix(config) + suffix  # what stands behind the patches is moved to the front
        grid = self.kind.grid(config)
        patches = math.prod(grid)
        shown = int(patches * (1 - getattr(config, "mask_ratio", 0.0)))  # a masked autoencoder shows some, shuffled
        stem = getattr(self.encoder, self.kind.stem)
        stem_macs = patches * sum(m.weight.numel() for m in stem.modules() if isinstance(m, _PRODUCTS))
        per_token = once = dense = 0
        if self.kind.counted:
            dense = self._counted() - stem_macs
        else:
            inside = {m for block in self.blocks for m in block.modules()} | set(stem.modules())
            per_token, once = _head_macs(m for m in self.module.modules() if m not in inside)
            once *= self.kind.head_rows(config, patches)
        in_rows = not hasattr(config, "mask_ratio") and self.site is Site
        is_picture = len(grid) == 2 and in_rows and not suffix
        return ModelShape(
            blocks=blocks,
            num_tokens=shown + prefix,
            num_prefix=prefix,
            registers_only=not self.kind.has_class_token,
            grid=(grid[0], grid[1]) if is_picture else None,
            in_rows=in_rows,
            dim=self.kind.width(config),
            stem_macs=stem_macs,
            head_macs=once,
            head_weights=per_token,
            dense_macs=dense,
            parameters=sum(p.numel() for p in self.module.parameters()),
        )

    def example(self) -> dict[str, Tensor]:
        """One random image or clip, in the keyword arguments of the model."""
        weight, generator = next(self.encoder.parameters()), torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(weight.device, weight.dtype)

        taken = inspect.signature(type(self.module).forward).parameters
        return {k: v for k, v in self.kind.inputs(self.encoder.config, random).items() if k in taken}

    def run(self, example: Mapping[str, Tensor]) -> Tensor:
        """Logits, or pooled features, or else the last hidden state."""
        output = self.module(**example)
        for name in ("logits", "image_embeds", "pooler_output", "last_hidden_state"):
            if getattr(output, name, None) is not None:
                return output[name]
        first = output.to_tuple()[0]
        return first if isinstance(first, Tensor) else first[-1]

    def install(self, reduction: Reduction) -> list[Undo]:
        """Pool by size; give dense models, and whoever asked, the full length."""
        full_length = reduction.full_length or self._is_dense()
        after = Averaged(reduction.shape.num_prefix) if self._averages() and reduction.method.pools_by_size else None
        lead = self._lead if self.kind.suffix(self.encoder.config) else None
        running = RunningMethod(self.encoder, "forward", full_length=full_length, lead=lead, after=after)
        undo: list[Undo] = [running.install()]
        if "image_grid_hw" in running.argument_names:
            undo.append(self.encoder.register_forward_pre_hook(_refuse_packed, with_kwargs=True).remove)
        for module in self.encoder.modules():
            name = type(module).__name__
            if name.endswith("MultiheadAttentionPoolingHead"):
                undo.append(module.register_forward_pre_hook(reduced_mask, with_kwargs=True).remove)
                sized = SizedKeys(reduction)
                undo.append(module.attention.register_forward_pre_hook(sized, with_kwargs=True).remove)  # type: ignore
            elif name == "Aimv2AttentionPoolingHead":
                undo.append(module.register_forward_pre_hook(one_row_a_patch).remove)
            elif name == "BeitPooler" and module.layernorm is not None and reduction.method.pools_by_size:
                undo.append(module.register_forward_pre_hook(weigh_patches).remove)
        return undo

    def _counted(self) -> int:
        """Multiply-accumulates before and behind the blocks, counted in a run on the example."""
        inside, hooks = 0, []

        def add(sign: int) -> None:
            nonlocal inside
            inside += sign * counter.get_total_flops()

        with FlopCounter() as counter:
            for block in self.blocks:
                hooks.append(block.register_forward_pre_hook(lambda *_: add(-1)))
                hooks.append(block.register_forward_hook(lambda *_: add(1)))
            try:
                self.evaluate()
            finally:
                for hook in hooks:
                    hook.remove()
        return (counter.get_total_flops() - inside) // 2

    def _is_dense(self) -> bool:
        """Whether what comes behind the encoder wants a row for every patch."""
        is_backbone = type(self.encoder).__name__.endswith("Backbone")
        if self.kind.is_dense or self.kind.suffix(self.encoder.config) or is_backbone:
            return True
        if self._averages():
            return False
        name = type(self.surrounding if is_pretrained(self.surrounding) else self.module).__name__
        return not (name in _READS_POOLED or name.endswith(("Model", "ModelWithProjection", "Transformer")))

    def _averages(self) -> bool:
        """Whether the mean of the patches is taken behind the encoder."""
        named = type(self.module).__name__ in _AVERAGES
        return named and getattr(self.encoder.config, "use_mean_pooling", True)

    def _lead(self, arguments: dict[str, Any]) -> Tensor:
        """[1, K] the tokens that are not patches, from both ends."""
        front, back = self.kind.prefix(self.encoder.config), self.kind.suffix(self.encoder.config)
        return torch.arange(-back, front, device=arguments["pixel_values"].device)[None]


class HuggingFaceAdapter(Adapter):
    """Every transformers model that needs nothing but ``pixel_values`` and holds one known encoder."""

    name = "transformers"

    def tower(self, module: nn.Module) -> Tower | None:
        """A tower if there is exactly one known encoder, all of whose blocks are built as its family's."""
        if not is_pretrained(module) or not takes_pictures(module):
            return None
        found = [(m, kind) for m in module.modules() if (kind := _kind_of(m)) is not None]
        if len(found) != 1:
            return None
        encoder, kind = found[0]
        blocks = kind.blocks(encoder)
        if not blocks or not same_pictures(module, encoder):
            return None
        for block in blocks:
            require_parts(block, kind)
        reason = kind.refuses(encoder.config)
        if reason:
            raise UnsupportedModelError(f"{type(module).__name__}: {reason}")
        if type(module).__name__ in ("Siglip2ForImageClassification",):
            raise UnsupportedModelError(
                f"{type(module).__name__} averages patches by the mask of the whole image, which does not fit reduced "
                "tokens. Patch its vision_model and pool pooler_output, or use SiglipForImageClassification."
            )
        return HuggingFaceTower(module, encoder, blocks, kind)

    def text_tower(self, module: nn.Module) -> Tower | None:
        """A tower if ``module`` is a known text model."""
        if not is_pretrained(module) or not hasattr(module, "embeddings"):
            return None
        kind = TEXT_FAMILIES.get(getattr(module.config, "model_type", ""))  # type: ignore[attr-defined]
        blocks = find_blocks(module)
        if kind is None or not blocks:
            return None
        for block in blocks:
            require_parts(block, kind)
        return HuggingFaceTextTower(module, module, blocks, kind)

    def refusal(self, model: nn.Module) -> str:
        """From the table of the encoders that were looked at."""
        return refusal(model)

    def supported(self) -> list[str]:
        """The families."""
        return [family.name for family in FAMILIES.values()]


class HuggingFaceTextTower(HuggingFaceTower):
    """The text tower of a CLIP-like model. The token that is pooled is protected; features have the full length."""

    padding_in_mask = False

    def measure(self) -> ModelShape:
        """Read the sizes off the config and the modules; embedding words costs no multiplications."""
        config = self.encoder.config
        inside = {m for block in self.blocks for m in block.modules()}
        _, once = _head_macs(m for m in self.module.modules() if m not in inside)
        return ModelShape(
            blocks=tuple(measure_block(block, self.kind.parts) for block in self.blocks),
            num_tokens=int(config.max_position_embeddings),
            num_prefix=1,
            dim=int(config.hidden_size),
            head_macs=once,
            parameters=sum(p.numel() for p in self.module.parameters()),
        )

    def example(self) -> dict[str, Tensor]:
        """One random text that fills the context."""
        config = self.encoder.config
        last = config.eos_token_id if isinstance(config.eos_token_id, int) and config.eos_token_id != 2 else None
        ids = torch.arange(3, 3 + config.max_position_embeddings) % (config.vocab_size - 1)
        if last is not None:
            ids = torch.where(ids == last, 0, ids)
        ids[-1] = config.vocab_size - 1 if last is None else last
        return {"input_ids": ids[None].to(next(self.encoder.parameters()).device)}

    def install(self, reduction: Reduction) -> list[Undo]:
        """Move the pooled token to the front, and give everything its place back behind the blocks."""
        running = RunningMethod(self.encoder, "forward", full_length=True, lead=self._lead)
        mask = self.encoder.encoder.register_forward_pre_hook(_explicit_mask, with_kwargs=True)
        return [running.install(), mask.remove]

    def _lead(self, arguments: dict[str, Any]) -> Tensor:
        """[B, 1] the position that the model pools: the end of the text, or the last token (SigLIP)."""
        ids, end = arguments["input_ids"], getattr(self.encoder, "eos_token_id", None)
        if end is None:
            return torch.full_like(ids[:, :1], -1)
        return (ids if end == 2 else (ids == end).int()).argmax(dim=1, keepdim=True)


def _explicit_mask(
    _module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Pre-hook for a causal encoder: tokens change their places, so which may see which must be said by a mask."""
    if not kwargs.get("is_causal"):
        return None
    mask, x = kwargs.get("attention_mask"), kwargs["inputs_embeds"]
    if mask is None:
        mask = torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
    return inputs, {**kwargs, "attention_mask": mask, "is_causal": False}


def _kind_of(module: Any) -> Family | None:
    """What is known about an encoder, if ``module`` embeds pictures and runs blocks of a known kind."""
    kind = FAMILIES.get(getattr(getattr(module, "config", None), "model_type", ""))
    return kind if kind is not None and hasattr(module, kind.stem) and takes_pictures(module) else None


def _refuse_packed(module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pre-hook for an encoder that can take several images in one sequence."""
    if kwargs.get("image_grid_hw", next(iter(inputs[1:]), None)) is not None:
        raise UnsupportedModelError(
            f"{type(module).__name__} was given image_grid_hw, so several images lie in one sequence and would be "
            "reduced as one. Give it batches of images of one size, without image_grid_hw."
        )


def _head_macs(modules: Any) -> tuple[int, int]:
    """Multiply-accumulates behind the blocks: per token (keys and values of attention pools), and once."""
    per_token = once = 0
    for module in modules:
        if isinstance(module, nn.MultiheadAttention):
            per_token += 2 * module.embed_dim**2
            once += 2 * module.embed_dim**2
        elif type(module).__name__ == "Aimv2AttentionPoolingHead":
            per_token += 2 * module.hidden_size**2
            once -= 2 * module.hidden_size**2  # its k_proj and v_proj are counted below
        elif isinstance(module, nn.Linear) and type(module).__name__ != "NonDynamicallyQuantizableLinear":
            once += linear_size([module])[0]
    return per_token, once


registry.add(HuggingFaceAdapter())
