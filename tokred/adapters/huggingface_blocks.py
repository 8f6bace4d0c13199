"""How the blocks of transformers' encoders are put together, and which encoders are known."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from tokred.adapters.huggingface_attention import HuggingFaceReader, dense_mask
from tokred.adapters.huggingface_inputs import (
    Inputs,
    clips,
    feature_map,
    flattened_patches,
    frames,
    grid_of,
    grid_of_count,
    grid_of_frame,
    grid_of_pooled,
    padded_patches,
    patches,
    pictures,
    placed_patches,
    row_of_patches,
    spread_frame,
)
from tokred.adapters.parts import BlockParts
from tokred.errors import UnsupportedModelError


class _Parts(BlockParts):
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


class _BeitParts(_Parts):
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


class _VJepaParts(_Parts):
    """The block gives its attention nothing but the positions."""

    def for_attention(self, block: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leave the rest out."""
        return {"position_mask": arguments.get("position_mask")}


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
_QIANFAN = _Parts(
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
_BERT = _Parts(mlp=("layernorm_after", "intermediate", "output.dense", "output.dropout"), **_NESTED)
_POSE = _Parts(mlp=("layernorm_after", "mlp"), **_NESTED)
_CLIP = _Parts(attention=("layer_norm1", "self_attn"), mlp=("layer_norm2", "mlp"), attn="self_attn", **_COMMON)
_BLIP = replace(_CLIP, indexed={}, bias=None, reader=HuggingFaceReader(takes_mask=False))
_DINO = _Parts(
    attention=("norm1", "attention", "layer_scale1", "drop_path"),
    mlp=("norm2", "mlp", "layer_scale2", "drop_path"),
    attn="attention",
    **{**_COMMON, "indexed": {"attention_mask": "bias", "position_embeddings": "rope"}},
)
_MLCD = replace(_CLIP, indexed={"attention_mask": "bias", "position_embeddings": _rows_of_every_image})
_LLAMA = _Parts(
    attention=("input_layernorm", "self_attn"),
    mlp=("post_attention_layernorm", "mlp"),
    attn="self_attn",
    indexed={"freqs_ci": _rows_of_every_image},
    bias=None,
    returns_tuple=True,
    reader=HuggingFaceReader(takes_mask=False),
)
_STEP = _Parts(
    attention=("layernorm_before", "self_attn", "lambda_1"),
    mlp=("layernorm_after", "mlp", "lambda_2"),
    attn="self_attn",
    **{**_COMMON, "indexed": {"attention_mask": "bias", "position_embeddings": "rows"}},
)
_GEMMA = _Parts(
    attention=("input_layernorm", "self_attn", "post_attention_layernorm"),
    mlp=("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
    attn="self_attn",
    **{**_COMMON, "indexed": {"attention_mask": "bias", "position_embeddings": "rows", "position_ids": "rows"}},
)
_VJEPA = _VJepaParts(
    attention=("norm1", "attention", "drop_path"),
    mlp=("norm2", "mlp", "drop_path"),
    attn="attention",
    indexed={"position_mask": "positions"},
    bias=None,
    returns_tuple=True,
    reader=HuggingFaceReader(takes_mask=False, eager_takes_mask=False),
)
_PIX2STRUCT = _Parts(
    attention=("pre_attention_layer_norm", "attention"),
    mlp=("pre_mlp_layer_norm", "mlp"),
    attn="attention",
    returns_tuple=True,
    **_COMMON,
)
_AIM = _Parts(attention=("rms_norm1", "attention"), mlp=("rms_norm2", "ffn"), attn="attention", **_COMMON)
_BEIT = _BeitParts(**_VIT, own_bias=("relative_position_bias", "forward"), own_bias_length="dim_size")


def _class_token(_config: Any) -> int:
    return 1


def _class_and_distillation(_config: Any) -> int:
    return 2


def _with_registers(config: Any) -> int:
    return 1 + config.num_register_tokens


def _several_class_tokens(config: Any) -> int:
    return config.n_cls_tokens


def _summary(config: Any) -> int:
    return config.num_cls_tokens + config.num_registers


def _nothing(_config: Any) -> int:
    return 0


def _once(_config: Any, _patches: int) -> int:
    return 1


def _squares(config: Any, patches: int) -> int:
    return math.ceil(patches**0.5 / config.hidden_stride) ** 2


def _detections(config: Any, _patches: int = 0) -> int:
    return config.num_detection_tokens


def find_blocks(encoder: nn.Module) -> list[nn.Module]:
    """The one list of blocks in an encoder; empty if there is none, or several."""
    lists = [
        m for name, m in encoder.named_modules() if isinstance(m, nn.ModuleList) and name.endswith(("layers", "layer"))
    ]
    return list(lists[0]) if len(lists) == 1 else []


def _spatial_blocks(encoder: Any) -> list[nn.Module]:
    return list(encoder.spatial_layers)


def _without_queries(model: Any) -> list[nn.Module]:
    return list(model.layers)[: -model.config.num_blocks]


def _no_reason(_config: Any) -> str:
    return ""


def _several_experts(config: Any) -> str:
    if config.num_experts == 1:
        return ""
    return (
        f"its blocks choose one of {config.num_experts} experts by dataset_index, which is not known to work reduced. "
        "Supported are models with num_experts=1."
    )


def _positions_between_blocks(config: Any) -> str:
    if not config.use_mid_position_embeddings:
        return ""
    return (
        "it adds position embeddings between its blocks (use_mid_position_embeddings), to all tokens, so no token may "
        "be missing. Supported are YOLOS models without them."
    )


@dataclass(frozen=True)
class Family:
    """A kind of encoder, known by the ``model_type`` of its config.

    Attributes:
        name: as users know it.
        parts: how its blocks are put together.
        stem: name of the module in the encoder that embeds the patches.
        blocks: finds the blocks in the encoder.
        grid: rows and columns of the patches in a sequence, by config.
        inputs: makes one random picture, by config.
        prefix: tokens in front of the patches, by config.
        has_class_token: the first of them is a class token.
        suffix: tokens behind the patches that are not to be reduced either, by config.
        is_dense: every model around the encoder wants a row for every patch.
        head_rows: rows that the linear layers behind the encoder take, by config and number of patches.
        counted: what stands behind the blocks is more than linear layers, so that its cost is counted in a run.
        refuses: why a config cannot be reduced; empty if it can.
    """

    name: str
    parts: BlockParts
    stem: str = "embeddings"
    blocks: Callable[[Any], list[nn.Module]] = find_blocks
    grid: Callable[[Any], tuple[int, ...]] = grid_of
    inputs: Inputs = pictures
    prefix: Callable[[Any], int] = _class_token
    has_class_token: bool = True
    suffix: Callable[[Any], int] = _nothing
    is_dense: bool = False
    head_rows: Callable[[Any, int], int] = _once
    counted: bool = False
    refuses: Callable[[Any], str] = _no_reason


_NO_PREFIX: dict[str, Any] = {"prefix": _nothing, "has_class_token": False}
# queries join the sequence in front of the last blocks, which predict masks for all patches
_QUERIES: dict[str, Any] = {"blocks": _without_queries, "is_dense": True, "counted": True}
FAMILIES = {
    "vit": Family("ViT", _Parts(**_VIT)),
    "deit": Family("DeiT", _Parts(**_VIT), prefix=_class_and_distillation),
    "vit_msn": Family("ViT-MSN", _Parts(**_VIT)),
    "vit_mae": Family("ViT-MAE", _Parts(**_VIT)),
    "ijepa": Family("I-JEPA", _Parts(**_VIT), **_NO_PREFIX),
    "beit": Family("BEiT", _BEIT),
    "pixio": Family("Pixio", _Parts(**_VIT), prefix=_several_class_tokens),
    "internvl_vision": Family("InternVL", _Parts(**_VIT)),
    "clip_vision_model": Family("CLIP", _CLIP),
    "metaclip_2_vision_model": Family("MetaCLIP 2", _CLIP),
    "altclip_vision_model": Family("AltCLIP", _CLIP),
    "chinese_clip_vision_model": Family("Chinese CLIP", _CLIP),
    "clipseg_vision_model": Family("CLIPSeg", _CLIP),
    "git_vision_model": Family("GIT", _CLIP),
    "owlvit_vision_model": Family("OWL-ViT", _CLIP),
    "owlv2_vision_model": Family("OWLv2", _CLIP),
    "siglip_vision_model": Family("SigLIP", _CLIP, **_NO_PREFIX),
    "siglip2_vision_model": Family("SigLIP 2", _CLIP, grid=grid_of_count, inputs=padded_patches, **_NO_PREFIX),
    "dinov2": Family("DINOv2", _DINO),
    "dinov2_with_registers": Family("DINOv2 with registers", _DINO, prefix=_with_registers),
    "dinov3_vit": Family("DINOv3", _DINO, prefix=_with_registers),
    "aimv2_vision_model": Family("AIMv2", _AIM, **_NO_PREFIX),
    "ovis2_vision": Family("Ovis2", _AIM, **_NO_PREFIX, is_dense=True, head_rows=_squares),
    "blip_2_vision_model": Family("BLIP-2", _BLIP),
    "instructblip_vision_model": Family("InstructBLIP", _BLIP),
    "instructblipvideo_vision_model": Family("InstructBLIP Video", _BLIP),
    "kosmos_2_vision_model": Family("Kosmos-2", _CLIP),
    "janus_vision_model": Family("Janus", _CLIP, **_NO_PREFIX, is_dense=True),  # pools the patch in the corner
    "idefics2_vision": Family("Idefics2", _CLIP, **_NO_PREFIX),
    "idefics3_vision": Family("Idefics3", _CLIP, **_NO_PREFIX),
    "smolvlm_vision": Family("SmolVLM", _CLIP, **_NO_PREFIX),
    "qianfan_ocr_vision": Family("Qianfan-OCR", _QIANFAN),
    "tipsv2_vision_model": Family("TIPSv2", _DINO, prefix=_with_registers),
    "sapiens2": Family("Sapiens 2", _DINO, prefix=_with_registers),
    "radio": Family("RADIO", _DINO, prefix=_summary),
    "dpt": Family("DPT", _BERT),
    "yolos": Family(
        "YOLOS",
        _BERT,
        suffix=_detections,
        head_rows=_detections,
        refuses=_positions_between_blocks,
    ),
    "vitpose_backbone": Family("ViTPose", _POSE, **_NO_PREFIX, refuses=_several_experts),
    "videomae": Family("VideoMAE", _BERT, **_NO_PREFIX),
    "vivit": Family("ViViT", _Parts(**_VIT)),
    "vjepa2": Family("V-JEPA 2", _VJEPA, inputs=clips, is_dense=True, counted=True, **_NO_PREFIX),
    "videoprism_vision_model": Family(
        "VideoPrism",
        _Parts(**_VIT),
        stem="spatial_embeddings",
        blocks=_spatial_blocks,
        grid=grid_of_frame,
        inputs=spread_frame,
        is_dense=True,  # the blocks over time, behind these, want every patch of every frame
        counted=True,
        **_NO_PREFIX,
    ),
    "mlcd_vision_model": Family("MLCD", _MLCD),
    "llama4_vision_model": Family(
        "Llama 4", _LLAMA, stem="patch_embedding", suffix=_class_token, is_dense=True, counted=True, **_NO_PREFIX
    ),
    "step3p5_vision": Family("Step 3.7", _STEP, is_dense=True, counted=True, **_NO_PREFIX),
    "molmo2_vision": Family(
        "Molmo 2", _CLIP, stem="patch_embedding", inputs=patches, is_dense=True, counted=True, **_NO_PREFIX
    ),
    "granite_docling_vision": Family("Granite Docling", _CLIP, is_dense=True, counted=True, **_NO_PREFIX),
    "unlimited_ocr_vision_encoder": Family("Unlimited OCR", _CLIP, inputs=feature_map, is_dense=True, counted=True),
    "gemma4_vision": Family(
        "Gemma 4",
        _GEMMA,
        stem="patch_embedder",
        grid=grid_of_pooled,
        inputs=placed_patches,
        is_dense=True,
        counted=True,
        **_NO_PREFIX,
    ),
    "pix2struct_vision_model": Family(
        "Pix2Struct", _PIX2STRUCT, grid=row_of_patches, inputs=flattened_patches, **_NO_PREFIX
    ),
    "eomt": Family("EoMT", _DINO, prefix=_with_registers, **_QUERIES),
    "eomt_dinov3": Family("EoMT with DINOv3", _DINO, prefix=_with_registers, **_QUERIES),
    "videomt": Family("VidEoMT", _DINO, inputs=frames, prefix=_with_registers, **_QUERIES),
}
"""Encoders by the ``model_type`` of their config."""

TEXT_FAMILIES = {
    "clip_text_model": Family("CLIP text", _CLIP),
    "metaclip_2_text_model": Family("MetaCLIP 2 text", _CLIP),
    "siglip_text_model": Family("SigLIP text", _CLIP),
    "siglip2_text_model": Family("SigLIP 2 text", _CLIP),
}


def require_parts(block: nn.Module, kind: Family) -> None:
    """Every child and parameter of the block must be one that the family's description runs through."""
    paths = (*kind.parts.attention, *kind.parts.mlp, *(kind.parts.own_bias or ()))
    known = {path.partition(".")[0] for path in paths}
    found = [name for name, _ in [*block.named_children(), *block.named_parameters(recurse=False)]]
    strange = [name for name in found if name not in known]
    missing = [] if hasattr(block, kind.parts.attn) else [kind.parts.attn]
    if strange or missing:
        raise UnsupportedModelError(
            f"{type(block).__name__} is not built as the {kind.name} blocks that are known here: "
            f"unknown parts {strange}, missing {missing}. Supported versions of transformers: 5.18 and newer."
        )
