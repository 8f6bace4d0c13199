"""How the blocks of transformers' encoders are put together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokred.adapters.attention import current_call
from tokred.adapters.huggingface_attention import HuggingFaceReader, dense_mask
from tokred.adapters.parts import BlockParts
from tokred.errors import UnsupportedModelError


class HuggingFaceParts(BlockParts):
    """Blocks whose class checkpoints its own forward, and whose masks are made for the kernel of the attention."""

    def with_dense_masks(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Turn a mask made for flash or flex attention into one that can be cut to the tokens that are there."""
        if self.bias is None or arguments.get(self.bias) is None:
            return arguments
        return {**arguments, self.bias: dense_mask(arguments[self.bias])}

    def original(self, block: nn.Module) -> Callable[..., Any]:
        """The forward without the checkpoint around it."""
        return inspect.unwrap(type(block).forward)

    def checkpoint(self, block: Any) -> Callable[..., Tensor] | None:
        """The block's own checkpoint (transformers 5.18 checkpoints the call, outside of any forward)."""
        inside = hasattr(type(block).forward, "__wrapped__")
        return (
            block._gradient_checkpointing_func if inside and block.gradient_checkpointing and block.training else None
        )


class _BeitParts(HuggingFaceParts):
    """The block adds its relative position bias to the mask before it calls the attention."""

    def for_attention(self, block: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Compute the bias as the block does."""
        own = ("interpolate_pos_encoding", "resolution")
        rest = {name: value for name, value in arguments.items() if name not in own}
        if block.relative_position_bias is None:
            return rest
        window = tuple(side // block.patch_size for side in arguments["resolution"])
        mask = rest.get("attention_mask")
        bias = block.relative_position_bias(window, arguments.get("interpolate_pos_encoding", False), dim_size=None)
        return {**rest, "attention_mask": bias if mask is None else bias + mask}


class _VJepaParts(HuggingFaceParts):
    """The block gives its attention nothing but the positions."""

    def for_attention(self, block: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leave the rest out."""
        return {"position_mask": arguments.get("position_mask")}


_NO_BOUNDS = (
    "The blocks of this encoder get images in one sequence and are not told where each of them begins, so their "
    "patches cannot be told apart. Newer versions of transformers say it to all kernels; this one does so under "
    "attn_implementation='sdpa', if at all."
)


@dataclass(frozen=True)
class PackedParts(HuggingFaceParts):
    """Blocks that take images one behind another [L, C], and the places ``cu_seqlens`` where each begins.

    They are run on a batch [B, N, C] laid out flat as if it were one image, in which the attention function finds the
    B images again, so that there is one call of it for all of them.

    Attributes:
        rank: dimensions of what the block takes; 3 for [1, L, C].
    """

    rank: int = 2

    def lengths(self, arguments: Mapping[str, Any]) -> list[int]:
        """Tokens of every image in the sequence.

        Raises:
            UnsupportedModelError: it is not said where an image begins.
        """
        if arguments.get("cu_seqlens") is None:
            raise UnsupportedModelError(_NO_BOUNDS)
        return arguments["cu_seqlens"].diff().tolist()

    def run(self, block: nn.Module, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The forward of the block's class: [B, N, C]."""
        return super().run(block, self._flat(x), self._for_one(x, arguments)).view_as(x)

    def call(self, attn: nn.Module, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The attention module alone: [B, N, C]."""
        return super().call(attn, self._flat(x), self._for_one(x, arguments)).view_as(x)

    def _flat(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)[(None,) * (self.rank - 2)]

    def _for_one(self, x: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments for a single image of all tokens."""
        call = current_call()
        assert call is not None, "parts of a packed block run inside a call of the block"
        call.packed_images, length = x.shape[0], x.shape[0] * x.shape[1]
        flat = {name: _flat_rows(arguments[name]) for name in self.indexed if arguments.get(name) is not None}
        bounds = torch.tensor([0, length], dtype=torch.int32)  # not on the device: blocks make a list of it
        longest = {"max_seqlen": length} if "max_seqlen" in arguments else {}
        return {**arguments, **flat, "cu_seqlens": bounds, **longest}


class _PixtralParts(PackedParts):
    """The images are kept apart by a mask, or by what flash attention takes in its place."""

    def lengths(self, arguments: Mapping[str, Any]) -> list[int]:
        """An image ends where a token does not see the next one."""
        if arguments.get("cu_seq_lens_q") is not None:
            return arguments["cu_seq_lens_q"].diff().tolist()
        if arguments.get("attention_mask") is None:
            raise UnsupportedModelError(_NO_BOUNDS)
        hidden = arguments["attention_mask"][0, 0].diagonal(1) < 0
        ends = [int(i) + 1 for i in hidden.nonzero()] + [len(hidden) + 1]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]

    def _for_one(self, x: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
        flat = super()._for_one(x, arguments)
        return {"attention_mask": None, "position_embeddings": flat["position_embeddings"]}


def _flat_rows(rows: Any) -> Any:
    return tuple(r.flatten(0, 1) for r in rows) if isinstance(rows, tuple | list) else rows.flatten(0, 1)


class _OfEveryImage:
    """Rotary positions of every image [B, N, ..], for an attention that takes one table of them and makes it 4-D."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def unsqueeze(self, _dim: int) -> Tensor:
        """The images are there already (MLCD)."""
        return self.rows

    def view(self, *_shape: int) -> Tensor:
        """The heads, too (Llama 4)."""
        return self.rows


def _rows_of_every_image(table: Tensor, position: Tensor, _num_prefix: int) -> _OfEveryImage:
    return _OfEveryImage(table[position])


_COMMON: dict[str, Any] = {
    "indexed": {"attention_mask": "bias"},
    "bias": "attention_mask",
    "reader": HuggingFaceReader(),
}
_VIT: dict[str, Any] = {
    "attention": ("layernorm_before", "attention", "dropout", "lambda_1", "drop_path"),
    "mlp": ("layernorm_after", "mlp", "dropout", "lambda_2", "drop_path"),
    "attn": "attention",
    **_COMMON,
}
QIANFAN = HuggingFaceParts(
    attention=("layernorm_before", "attention", "lambda_1", "drop_path1"),
    mlp=("layernorm_after", "mlp", "dropout", "lambda_2", "drop_path2"),
    attn="attention",
    **_COMMON,
)
# as BERT is built: the module that attends lies in one that projects, and the last layer of the MLP adds the residual
_NESTED: dict[str, Any] = {
    "attention": ("layernorm_before", "attention"),
    "attn": "attention",
    "indexed": {},
    "bias": None,
    "reader": HuggingFaceReader(core="attention", takes_mask=False),
}
BERT = HuggingFaceParts(mlp=("layernorm_after", "intermediate", "output.dense", "output.dropout"), **_NESTED)
POSE = HuggingFaceParts(mlp=("layernorm_after", "mlp"), **_NESTED)
CLIP = HuggingFaceParts(attention=("layer_norm1", "self_attn"), mlp=("layer_norm2", "mlp"), attn="self_attn", **_COMMON)
BLIP = replace(CLIP, indexed={}, bias=None, reader=HuggingFaceReader(takes_mask=False))
DINO = HuggingFaceParts(
    attention=("norm1", "attention", "layer_scale1", "drop_path"),
    mlp=("norm2", "mlp", "layer_scale2", "drop_path"),
    attn="attention",
    **{**_COMMON, "indexed": {"attention_mask": "bias", "position_embeddings": "rope"}},
)
MLCD = replace(CLIP, indexed={"attention_mask": "bias", "position_embeddings": _rows_of_every_image})
LLAMA = HuggingFaceParts(
    attention=("input_layernorm", "self_attn"),
    mlp=("post_attention_layernorm", "mlp"),
    attn="self_attn",
    indexed={"freqs_ci": _rows_of_every_image},
    bias=None,
    returns_tuple=True,
    reader=HuggingFaceReader(takes_mask=False),
)
STEP = HuggingFaceParts(
    attention=("layernorm_before", "self_attn", "lambda_1"),
    mlp=("layernorm_after", "mlp", "lambda_2"),
    attn="self_attn",
    **{**_COMMON, "indexed": {"attention_mask": "bias", "position_embeddings": "rows"}},
)
GEMMA = HuggingFaceParts(
    attention=("input_layernorm", "self_attn", "post_attention_layernorm"),
    mlp=("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
    attn="self_attn",
    **{**_COMMON, "indexed": {"attention_mask": "bias", "position_embeddings": "rows", "position_ids": "rows"}},
)
VJEPA = _VJepaParts(
    attention=("norm1", "attention", "drop_path"),
    mlp=("norm2", "mlp", "drop_path"),
    attn="attention",
    indexed={"position_mask": "positions"},
    bias=None,
    returns_tuple=True,
    reader=HuggingFaceReader(takes_mask=False, eager_takes_mask=False),
)
PIX2STRUCT = HuggingFaceParts(
    attention=("pre_attention_layer_norm", "attention"),
    mlp=("pre_mlp_layer_norm", "mlp"),
    attn="attention",
    returns_tuple=True,
    **_COMMON,
)
AIM = HuggingFaceParts(attention=("rms_norm1", "attention"), mlp=("rms_norm2", "ffn"), attn="attention", **_COMMON)
VIT = HuggingFaceParts(**_VIT)
BEIT = _BeitParts(**_VIT, own_bias=("relative_position_bias", "forward"), own_bias_length="dim_size")

_ROPE: dict[str, Any] = {"indexed": {"position_embeddings": "rows"}, "bias": None}
_FUSED = HuggingFaceReader(takes_mask=False, fused="qkv")
PACKED = PackedParts(attention=("norm1", "attn"), mlp=("norm2", "mlp"), attn="attn", **_ROPE, reader=_FUSED)
PACKED_APART = replace(PACKED, reader=HuggingFaceReader(takes_mask=False))  # queries, keys and values apart
PACKED_CLIP = PackedParts(
    attention=("layer_norm1", "self_attn"),
    mlp=("layer_norm2", "mlp"),
    attn="self_attn",
    **_ROPE,
    reader=HuggingFaceReader(takes_mask=False),
)
PACKED_CLIP_ROW = replace(PACKED_CLIP, rank=3)
PACKED_VIT = PackedParts(
    attention=("layernorm_before", "self_attn", "lambda_1"),
    mlp=("layernorm_after", "mlp", "lambda_2"),
    attn="self_attn",
    **_ROPE,
    reader=HuggingFaceReader(takes_mask=False),
)
PIXTRAL = _PixtralParts(
    attention=("attention_norm", "attention"),
    mlp=("ffn_norm", "feed_forward"),
    attn="attention",
    **_ROPE,
    reader=HuggingFaceReader(takes_mask=False),
    rank=3,
)
