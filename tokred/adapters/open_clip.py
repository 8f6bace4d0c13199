"""The encoders of open_clip: visual towers, and text towers on request."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokred.adapters.base import Adapter, Tower, Undo, measure_block, registry
from tokred.adapters.open_clip_attention import MultiheadReader, OpenClipReader
from tokred.adapters.parts import BlockParts
from tokred.adapters.pool import votes, weigh
from tokred.adapters.site import Reduction
from tokred.adapters.surroundings import RunningMethod, SizedKeys, reduced_state
from tokred.errors import UnsupportedModelError
from tokred.shape import ModelShape


class _MultiheadParts(BlockParts):
    """Blocks around ``nn.MultiheadAttention``."""

    def call(self, attn: nn.Module, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Self-attention; the module takes the tokens three times."""
        return attn(x, x, x, need_weights=False, attn_mask=arguments.get("attn_mask"))[0]


_BRANCHES: dict[str, Any] = {"attention": ("ln_1", "attn", "ln_attn", "ls_1"), "mlp": ("ln_2", "mlp", "ls_2")}
_MULTIHEAD = _MultiheadParts(**_BRANCHES, reader=MultiheadReader())
_OWN = BlockParts(**_BRANCHES, reader=OpenClipReader())


class VisualTower(Tower):
    """``open_clip.transformer.VisionTransformer``."""

    family = "open_clip"

    def measure(self) -> ModelShape:
        """Read the sizes off the modules."""
        visual: Any = self.module
        blocks = tuple(measure_block(block, parts) for block, parts in zip(self.blocks, self.parts, strict=True))
        rows, columns = visual.grid_size
        pools = [pool.attn for pool in (visual.attn_pool, getattr(visual, "attn_pool_contrastive", None)) if pool]
        return ModelShape(
            blocks=blocks,
            num_tokens=rows * columns + 1,
            num_prefix=1,
            grid=(rows, columns),
            dim=visual.transformer.width,
            stem_macs=rows * columns * visual.conv1.weight.numel(),
            head_macs=0 if visual.proj is None else visual.proj.numel(),
            head_weights=sum(2 * pool.embed_dim * pool.kdim for pool in pools),
            parameters=sum(p.numel() for p in visual.parameters()),
        )

    def example(self) -> Tensor:
        """One random image."""
        visual: Any = self.module
        weight = visual.conv1.weight
        image = torch.randn(1, weight.shape[1], *visual.image_size, generator=torch.Generator().manual_seed(0))
        return image.to(weight.device, weight.dtype)

    def run(self, example: Tensor) -> Tensor:
        """The image features."""
        output = self.module(example)
        return output[0] if isinstance(output, tuple) else output

    def install(self, reduction: Reduction) -> list[Undo]:
        """Pool by size, and give intermediate features in full length."""
        visual: Any = self.module
        undo = [
            RunningMethod(visual, "forward", full_length=reduction.full_length).install(),
            RunningMethod(visual, "forward_intermediates", full_length=True).install(),
            _AverageBySize(visual, reduction).install(),
        ]
        for pool in (visual.attn_pool, getattr(visual, "attn_pool_contrastive", None)):
            if pool is not None and not (pool is not visual.attn_pool and visual.attn_pool_type == "cascade"):
                sized = SizedKeys(reduction)
                undo.append(pool.attn.register_forward_pre_hook(sized, with_kwargs=True).remove)
        return undo


class TextTower(Tower):
    """``open_clip.transformer.TextTransformer``, or an ``open_clip.CLIP`` that holds the parts of one."""

    family = "open_clip text"

    def measure(self) -> ModelShape:
        """Read the sizes off the modules; embedding words costs no multiplications."""
        text: Any = self.module
        projection = text.text_projection
        return ModelShape(
            blocks=tuple(measure_block(block, parts) for block, parts in zip(self.blocks, self.parts, strict=True)),
            num_tokens=int(text.context_length),
            num_prefix=1,
            dim=text.transformer.width,
            head_macs=0 if projection is None else sum(p.numel() for p in _weights(projection)),
            parameters=sum(p.numel() for p in text.parameters()),
        )

    def example(self) -> Tensor:
        """One text of random words that fills the context."""
        text: Any = self.module
        words = torch.arange(1, text.context_length + 1) % (text.vocab_size - 1)
        words[-1] = text.vocab_size - 1
        end = self._end
        if self._pool == "eos" and end is not None:
            words = torch.where(words == end, 0, words)
            words[-1] = end
        return words[None].to(text.token_embedding.weight.device)

    def run(self, example: Tensor) -> Tensor:
        """The text features."""
        model: Any = self.module
        output = model.encode_text(example) if hasattr(model, "encode_text") else model(example)
        return output[0] if isinstance(output, tuple) else output

    def install(self, reduction: Reduction) -> list[Undo]:
        """Move the pooled token to the front, and give everything its place back behind the blocks."""
        names = ("encode_text" if hasattr(self.module, "encode_text") else "forward", "forward_intermediates")
        return [RunningMethod(self.module, name, full_length=True, lead=self._lead).install() for name in names]

    @property
    def _pool(self) -> str:
        text: Any = self.module
        return text.text_pool_type if hasattr(text, "text_pool_type") else text.pool_type

    @property
    def _end(self) -> int | None:
        text: Any = self.module
        return text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id

    def _lead(self, arguments: dict[str, Any]) -> Tensor | None:
        """[B, 1] the position that the model pools, if it was given a text."""
        words = arguments.get("text")
        if words is None:
            return None
        if self._pool == "argmax":
            return words.argmax(dim=1, keepdim=True)
        if self._pool == "eos":
            return (words == self._end).int().argmax(dim=1, keepdim=True)
        return torch.full_like(words[:, :1], 0 if self._pool == "first" else -1)


def _weights(projection: nn.Module | nn.Parameter) -> list[Tensor]:
    return [projection] if isinstance(projection, nn.Parameter) else [p for p in projection.parameters() if p.ndim == 2]


class _AverageBySize:
    """The replaced ``_global_pool``: the mean counts a token once for every patch it stands for."""

    def __init__(self, visual: Any, reduction: Reduction) -> None:
        self.visual = visual
        self.by_size = reduction.method.pools_by_size

    def install(self) -> Undo:
        """Replace the method on this instance, where the model averages patches."""
        if self.visual.pool_type == "avg" and self.visual.attn_pool is None:
            self.visual._global_pool = self.pool
        return self.remove

    def remove(self) -> None:
        """Give the instance its own method back."""
        vars(self.visual).pop("_global_pool", None)

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the patches by size, and the patches."""
        state, pool = reduced_state(), type(self.visual)._global_pool
        pooled, tokens = pool(self.visual, x)
        if state is None:
            return pooled, tokens
        return pool(self.visual, weigh(x, votes(state, self.by_size), 1))[0], tokens


class OpenClipAdapter(Adapter):
    """open_clip's own towers; those that wrap a timm model are found by the timm adapter."""

    name = "open_clip"

    def tower(self, module: nn.Module) -> Tower | None:
        """A tower if ``module`` is a visual transformer whose blocks are known."""
        library: Any = sys.modules.get("open_clip.transformer")
        if library is None or not isinstance(module, library.VisionTransformer):
            return None
        visual: Any = module
        blocks = list(visual.transformer.resblocks)
        parts = _parts(blocks)
        return None if parts is None else VisualTower(module, blocks, parts)

    def text_tower(self, module: nn.Module) -> Tower | None:
        """A tower if ``module`` is a text transformer, or a CLIP that holds the parts of one.

        Raises:
            UnsupportedModelError: padding is masked, or there is a class token at the end (CoCa): such masks are made
                for the whole text, one for every head.
        """
        library: Any = sys.modules.get("open_clip.transformer")
        if library is None:
            return None
        clip = hasattr(module, "encode_text") and hasattr(module, "text_pool_type")
        if not clip and not isinstance(module, library.TextTransformer):
            return None
        text: Any = module
        if getattr(text, "use_pad_mask", False) or getattr(text, "cls_emb", None) is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__} masks the padding of its texts head by head, which is not supported. Text "
                "towers of CLIP and SigLIP are; leave tower='text' out to reduce the vision tower."
            )
        blocks = list(text.transformer.resblocks)
        parts = _parts(blocks)
        return None if parts is None else TextTower(module, blocks, parts)

    def supported(self) -> list[str]:
        """What there is."""
        return ["CLIP and CoCa visual towers"]


def _parts(blocks: Sequence[nn.Module]) -> list[BlockParts] | None:
    """How the blocks are put together, read off their parts, or ``None`` if one is not known."""
    found = [_parts_of(block) for block in blocks]
    return None if None in found else [parts for parts in found if parts is not None]


def _parts_of(block: nn.Module) -> BlockParts | None:
    known = {*_BRANCHES["attention"], *_BRANCHES["mlp"]}
    if any(name not in known for name, _ in [*block.named_children(), *block.named_parameters(recurse=False)]):
        return None
    attn = getattr(block, "attn", None)
    if isinstance(attn, nn.MultiheadAttention):
        return _MULTIHEAD
    if isinstance(getattr(attn, "base_layer", None), nn.MultiheadAttention):
        raise UnsupportedModelError(
            f"{type(attn).__module__}.{type(attn).__name__} is wrapped around the attention of a block, whose weights "
            "tokred reads, so what it adds would be left out. PEFT's adapters are supported on linear layers; leave "
            "the attention out of target_modules, or merge the adapters first (merge_and_unload)."
        )
    return _OWN if hasattr(attn, "ln_k") and hasattr(attn, "in_proj_weight") else None


registry.add(OpenClipAdapter())
