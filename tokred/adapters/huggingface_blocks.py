"""Which encoders of transformers are known, and what is known about each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokred.adapters.huggingface_inputs import (
    Inputs,
    clips,
    feature_map,
    flattened_patches,
    frames,
    grid_of,
    grid_of_any,
    grid_of_count,
    grid_of_frame,
    grid_of_pooled,
    packed_patches,
    packed_pixels,
    packed_row_of_pixels,
    packed_squares,
    padded_patches,
    patches,
    pictures,
    placed_patches,
    row_of_patches,
    spread_frame,
)
from tokred.adapters.huggingface_parts import (
    AIM,
    BEIT,
    BERT,
    BLIP,
    CLIP,
    DINO,
    GEMMA,
    LLAMA,
    MLCD,
    PACKED,
    PACKED_APART,
    PACKED_CLIP,
    PACKED_CLIP_ROW,
    PACKED_VIT,
    PIX2STRUCT,
    PIXTRAL,
    POSE,
    QIANFAN,
    STEP,
    VIT,
    VJEPA,
)
from tokred.adapters.parts import BlockParts
from tokred.errors import UnsupportedModelError


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


def _hidden_size(config: Any) -> int:
    return int(config.hidden_size)


def _embedding(config: Any) -> int:
    return int(config.embed_dim)


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


def _named_blocks(encoder: Any) -> list[nn.Module]:
    return list(encoder.blocks)


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
        width: features of a token, by config.
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
    width: Callable[[Any], int] = _hidden_size
    counted: bool = False
    refuses: Callable[[Any], str] = _no_reason


_NO_PREFIX: dict[str, Any] = {"prefix": _nothing, "has_class_token": False}
# queries join the sequence in front of the last blocks, which predict masks for all patches
_QUERIES: dict[str, Any] = {"blocks": _without_queries, "is_dense": True, "counted": True}
# images of any size, one behind another; what comes behind the blocks makes one token of several neighbours
_PACKED: dict[str, Any] = {"grid": grid_of_any, "inputs": packed_patches, "is_dense": True, "counted": True}
_QWEN: dict[str, Any] = {"parts": PACKED, "stem": "patch_embed", "blocks": _named_blocks, **_PACKED, **_NO_PREFIX}
FAMILIES = {
    "vit": Family("ViT", VIT),
    "deit": Family("DeiT", VIT, prefix=_class_and_distillation),
    "vit_msn": Family("ViT-MSN", VIT),
    "vit_mae": Family("ViT-MAE", VIT),
    "ijepa": Family("I-JEPA", VIT, **_NO_PREFIX),
    "beit": Family("BEiT", BEIT),
    "pixio": Family("Pixio", VIT, prefix=_several_class_tokens),
    "internvl_vision": Family("InternVL", VIT),
    "clip_vision_model": Family("CLIP", CLIP),
    "metaclip_2_vision_model": Family("MetaCLIP 2", CLIP),
    "altclip_vision_model": Family("AltCLIP", CLIP),
    "chinese_clip_vision_model": Family("Chinese CLIP", CLIP),
    "clipseg_vision_model": Family("CLIPSeg", CLIP),
    "git_vision_model": Family("GIT", CLIP),
    "owlvit_vision_model": Family("OWL-ViT", CLIP),
    "owlv2_vision_model": Family("OWLv2", CLIP),
    "siglip_vision_model": Family("SigLIP", CLIP, **_NO_PREFIX),
    "siglip2_vision_model": Family("SigLIP 2", CLIP, grid=grid_of_count, inputs=padded_patches, **_NO_PREFIX),
    "dinov2": Family("DINOv2", DINO),
    "dinov2_with_registers": Family("DINOv2 with registers", DINO, prefix=_with_registers),
    "dinov3_vit": Family("DINOv3", DINO, prefix=_with_registers),
    "aimv2_vision_model": Family("AIMv2", AIM, **_NO_PREFIX),
    "ovis2_vision": Family("Ovis2", AIM, **_NO_PREFIX, is_dense=True, head_rows=_squares),
    "blip_2_vision_model": Family("BLIP-2", BLIP),
    "instructblip_vision_model": Family("InstructBLIP", BLIP),
    "instructblipvideo_vision_model": Family("InstructBLIP Video", BLIP),
    "kosmos_2_vision_model": Family("Kosmos-2", CLIP),
    "janus_vision_model": Family("Janus", CLIP, **_NO_PREFIX, is_dense=True),  # pools the patch in the corner
    "idefics2_vision": Family("Idefics2", CLIP, **_NO_PREFIX),
    "idefics3_vision": Family("Idefics3", CLIP, **_NO_PREFIX),
    "smolvlm_vision": Family("SmolVLM", CLIP, **_NO_PREFIX),
    "qianfan_ocr_vision": Family("Qianfan-OCR", QIANFAN),
    "tipsv2_vision_model": Family("TIPSv2", DINO, prefix=_with_registers),
    "sapiens2": Family("Sapiens 2", DINO, prefix=_with_registers),
    "radio": Family("RADIO", DINO, prefix=_summary),
    "dpt": Family("DPT", BERT),
    "yolos": Family(
        "YOLOS",
        BERT,
        suffix=_detections,
        head_rows=_detections,
        refuses=_positions_between_blocks,
    ),
    "vitpose_backbone": Family("ViTPose", POSE, **_NO_PREFIX, refuses=_several_experts),
    "videomae": Family("VideoMAE", BERT, **_NO_PREFIX),
    "vivit": Family("ViViT", VIT),
    "vjepa2": Family("V-JEPA 2", VJEPA, inputs=clips, is_dense=True, counted=True, **_NO_PREFIX),
    "videoprism_vision_model": Family(
        "VideoPrism",
        VIT,
        stem="spatial_embeddings",
        blocks=_spatial_blocks,
        grid=grid_of_frame,
        inputs=spread_frame,
        is_dense=True,  # the blocks over time, behind these, want every patch of every frame
        counted=True,
        **_NO_PREFIX,
    ),
    "mlcd_vision_model": Family("MLCD", MLCD),
    "llama4_vision_model": Family(
        "Llama 4", LLAMA, stem="patch_embedding", suffix=_class_token, is_dense=True, counted=True, **_NO_PREFIX
    ),
    "step3p5_vision": Family("Step 3.7", STEP, is_dense=True, counted=True, **_NO_PREFIX),
    "molmo2_vision": Family(
        "Molmo 2", CLIP, stem="patch_embedding", inputs=patches, is_dense=True, counted=True, **_NO_PREFIX
    ),
    "granite_docling_vision": Family("Granite Docling", CLIP, is_dense=True, counted=True, **_NO_PREFIX),
    "unlimited_ocr_vision_encoder": Family("Unlimited OCR", CLIP, inputs=feature_map, is_dense=True, counted=True),
    "gemma4_vision": Family(
        "Gemma 4",
        GEMMA,
        stem="patch_embedder",
        grid=grid_of_pooled,
        inputs=placed_patches,
        is_dense=True,
        counted=True,
        **_NO_PREFIX,
    ),
    "pix2struct_vision_model": Family(
        "Pix2Struct", PIX2STRUCT, grid=row_of_patches, inputs=flattened_patches, **_NO_PREFIX
    ),
    "eomt": Family("EoMT", DINO, prefix=_with_registers, **_QUERIES),
    "eomt_dinov3": Family("EoMT with DINOv3", DINO, prefix=_with_registers, **_QUERIES),
    "videomt": Family("VidEoMT", DINO, inputs=frames, prefix=_with_registers, **_QUERIES),
    "qwen2_vl_vision": Family("Qwen2-VL", **_QWEN, width=_embedding),
    "qwen3_vl_vision": Family("Qwen3-VL", **_QWEN),
    "qwen3_vl_moe_vision": Family("Qwen3-VL MoE", **_QWEN),
    "qwen3_5_vision": Family("Qwen3.5", **_QWEN),
    "qwen3_5_moe_vision": Family("Qwen3.5 MoE", **_QWEN),
    "qwen4_exp_vision": Family("Qwen4 Exp", **_QWEN),
    "qwen3_omni_moe_vision_encoder": Family("Qwen3 Omni", **_QWEN),
    "cohere_compass_vision": Family("Cohere Compass", **_QWEN),
    "ernie4_5_vl_moe_vision": Family("ERNIE 4.5 VL", **_QWEN),
    "glm4v_vision": Family("GLM-4.1V", **_QWEN),
    "glm4v_moe_vision": Family("GLM-4.5V", **_QWEN),
    "glm5_next_vision": Family("GLM-5 Next", **_QWEN),
    "glm_ocr_vision": Family("GLM-OCR", **_QWEN),
    "glm_image_vision": Family("GLM-Image", **_QWEN),
    "kimi_k25_vision": Family(
        "Kimi K2.5",
        PACKED_APART,
        stem="patch_embed",
        **{**_PACKED, "inputs": packed_pixels},
        **_NO_PREFIX,
    ),
    "cosmos3_edge_vision": Family("Cosmos3 Edge", PACKED_CLIP, **_PACKED, **_NO_PREFIX),
    "video_llama_3_vision": Family("VideoLLaMA 3", PACKED_CLIP, **_PACKED, **_NO_PREFIX),
    "paddleocr_vl_vision": Family(
        "PaddleOCR-VL", PACKED_CLIP, **{**_PACKED, "inputs": packed_row_of_pixels}, **_NO_PREFIX
    ),
    "minimax_m3_vl_vision": Family("MiniMax M3 VL", PACKED_CLIP, **_PACKED, **_NO_PREFIX),
    "hunyuan_vl_vision": Family("HunyuanVL", PACKED_CLIP_ROW, **_PACKED, **_NO_PREFIX),
    "inkling2_vision": Family("Inkling 2", PACKED_VIT, **{**_PACKED, "inputs": packed_squares}),
    "pixtral": Family("Pixtral", PIXTRAL, stem="patch_conv", is_dense=True, counted=True, **_NO_PREFIX),
}
"""Encoders by the ``model_type`` of their config."""

TEXT_FAMILIES = {
    "clip_text_model": Family("CLIP text", CLIP),
    "metaclip_2_text_model": Family("MetaCLIP 2 text", CLIP),
    "siglip_text_model": Family("SigLIP text", CLIP),
    "siglip2_text_model": Family("SigLIP 2 text", CLIP),
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
