"""Tiny random multimodal models of every family, built from configs, and prompts for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

WORDS, IMAGE, VIDEO, PAD, END = 90, 91, 92, 0, 99
SIZE = 100
TEXT: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": END,
}
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 48,
    "patch_size": 8,
}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False}
TOKENS = {"image_token_id": IMAGE, "pad_token_id": PAD}
PINPOINTS = [[48, 96], [96, 48], [96, 96], [48, 144]]
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
MM = ("mm_token_type_ids", 0, 1)
FULL = {"vision_feature_select_strategy": "full"}
WINDOW, NO_WINDOW = {"sliding_window": 16}, {"sliding_window": None}
VISION = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 8}
PIXTRAL = {**VISION, "model_type": "pixtral", "intermediate_size": 48, "image_size": 48, "head_dim": 8}
SAM = {
    **VISION, "model_type": "sam_vision_model", "output_channels": 16, "image_size": 128, "window_size": 4,
    "global_attn_indexes": [3], "mlp_dim": 48, "num_pos_feats": 16,
}  # fmt: skip
COHERE = {"model_type": "cohere2", "head_dim": 8, **WINDOW}
MERGING = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_heads": 4}
WINDOWS = {**MERGING, "fullatt_block_indexes": [1, 3], "window_size": 32}
POSITIONS = {**MERGING, "num_position_embeddings": 36}
DEEP = {**POSITIONS, "deepstack_visual_indexes": [1]}
FEW = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "num_experts": 4}
EXPERTS = {
    "moe_intermediate_size": 16, "num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}  # fmt: skip
LINEAR = {
    "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """How a family is built and fed.

    Attributes:
        name: of the case; that of the family, unless the family is there several times.
        config: arguments of its config.
        pixels: keyword arguments for images [n, 3, 48, 48]; the second argument is how many each prompt has.
        reads: how its visual tokens come from patches is known, so the attention of its encoder can be read.
        decoder: its layers are plain, so tokens can be dropped between them.
        family: in front of the names of its classes.
        types: the argument that tells image tokens from others: its name and the numbers for text and images.
        since: the version of transformers where it works.
    """

    name: str
    config: Callable[[], dict[str, Any]]
    pixels: Callable[[Tensor, list[int]], dict[str, Any]]
    reads: bool = True
    decoder: bool = True
    family: str = ""
    types: tuple[str, int, int] | None = None
    since: tuple[int, int] = (5, 18)


def plain(images: Tensor, _counts: list[int]) -> dict[str, Any]:
    return {"pixel_values": images}


def tiles(images: Tensor, counts: list[int]) -> dict[str, Any]:
    """The whole image and tiles; sizes that need padding."""
    sizes = [(90, 60) if i % 2 else (48, 96) for i in range(len(images))]
    many = [5 if i % 2 else 3 for i in range(len(images))]
    pixels = torch.zeros(len(images), max(many), 3, 48, 48)
    generator = torch.Generator().manual_seed(7)
    for i, n in enumerate(many):
        pixels[i, :n] = torch.randn(n, 3, 48, 48, generator=generator) + images[i]
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


def tiles_of_prompts(images: Tensor, counts: list[int]) -> dict[str, Any]:
    return {**tiles(images, counts), "batch_num_images": torch.tensor(counts)}


def listed(images: Tensor, counts: list[int]) -> dict[str, Any]:
    """[B, most images, 3, H, W], padded with zeros."""
    pixels = torch.zeros(len(counts), max(counts), *images.shape[1:])
    start = 0
    for row, n in enumerate(counts):
        pixels[row, :n] = images[start : start + n]
        start += n
    return {"pixel_values": pixels}


def sized(images: Tensor, _counts: list[int]) -> dict[str, Any]:
    """Images of several sizes, padded."""
    sizes = [(48, 48) if i % 2 else (32, 48) for i in range(len(images))]
    return {"pixel_values": images, "image_sizes": torch.tensor(sizes)}


def grids(images: Tensor, _counts: list[int], channels: int = 3, frames: int = 2, patch: int = 8) -> dict[str, Any]:
    """Flat patches and grids of several sizes."""
    generator = torch.Generator().manual_seed(3)
    thw = torch.tensor([[1, 4, 6] if i % 2 else [1, 4, 4] for i in range(len(images))])
    total = int(thw.prod(dim=1).sum())
    pixels = torch.randn(total, channels * frames * patch * patch, generator=generator)
    start = 0
    for i, n in enumerate(thw.prod(dim=1).tolist()):
        pixels[start : start + n] += images[i].mean()
        start += n
    return {"pixel_values": pixels, "image_grid_thw": thw}


def named(name: str) -> Callable[[Tensor, list[int]], dict[str, Any]]:
    """Pixels under another name."""
    return lambda images, _counts: {name: images}


def larger(images: Tensor, _counts: list[int]) -> dict[str, Any]:
    """For encoders with convolutions behind them."""
    return {"pixel_values": torch.nn.functional.interpolate(images, size=(128, 128))}


def two_sizes(images: Tensor, counts: list[int]) -> dict[str, Any]:
    return {"pixel_values": images, "high_res_pixel_values": larger(images, counts)["pixel_values"]}


def still(images: Tensor, counts: list[int]) -> dict[str, Any]:
    return grids(images, counts, frames=1)


def still_squares(images: Tensor, counts: list[int]) -> dict[str, Any]:
    """Patches that keep their shape."""
    inputs = grids(images, counts, frames=1)
    return {**inputs, "pixel_values": inputs["pixel_values"].view(-1, 3, 8, 8)}


def with_merge_sizes(images: Tensor, counts: list[int]) -> dict[str, Any]:
    inputs = grids(images, counts, frames=1)
    return {**inputs, "image_merge_sizes": torch.full((len(images),), 2)}


def placed(images: Tensor, counts: list[int]) -> dict[str, Any]:
    """Flat patches with their places, padded."""
    inputs = ragged(images, counts)
    pixels = torch.nn.functional.pad(inputs["pixel_values"], (0, 0, 0, 12))
    where = torch.full((len(images), 36, 2), -1)
    for i, (rows, columns) in enumerate(inputs["spatial_shapes"].tolist()):
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        where[i, : rows * columns] = torch.stack([column.flatten(), row.flatten()], dim=-1)
    return {"pixel_values": pixels, "image_position_ids": where}


def ragged(images: Tensor, _counts: list[int]) -> dict[str, Any]:
    """Flat patches, padded to those of the longest image."""
    sizes = [(4, 6) if i % 2 else (4, 4) for i in range(len(images))]
    generator = torch.Generator().manual_seed(5)
    pixels, mask = torch.zeros(len(images), 24, 3 * 64), torch.zeros(len(images), 24, dtype=torch.int64)
    for i, (rows, columns) in enumerate(sizes):
        real = rows * columns
        pixels[i, :real] = torch.randn(real, 3 * 64, generator=generator) + images[i].mean()
        mask[i, :real] = 1
    return {"pixel_values": pixels, "spatial_shapes": torch.tensor(sizes), "pixel_attention_mask": mask}


def _llava(
    vision: Mapping[str, Any] = CLIP, text: Mapping[str, Any] | None = None, **extra: Any
) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "vision_config": dict(vision),
        "text_config": {"model_type": "llama", **TEXT, **(text or {})},
        **TOKENS,
        **extra,
    }


def _qwen(vision: Mapping[str, Any], text: Mapping[str, Any] | None = None) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "vision_config": {"patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2, "depth": 4, **vision},
        "text_config": {**TEXT, "rope_parameters": MROPE, "head_dim": 8, **(text or {})},
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": 93,
        "vision_end_token_id": 94,
    }


def _glm(vision: str = "", text: Mapping[str, Any] | None = None) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "vision_config": {
            "depth": 4, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2, "image_size": 48,
            **MERGING, **({"model_type": vision} if vision else {}),
        },
        "text_config": {**TEXT, "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}, **(text or {})},
        "image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": 93, "image_end_token_id": 94,
        "video_start_token_id": 95, "video_end_token_id": 96,
    }  # fmt: skip


KINDS = [
    Kind("Llava", _llava(), plain),
    Kind("VipLlava", _llava(vision_feature_layers=[-2, -3]), plain),
    Kind("LlavaNext", _llava(image_grid_pinpoints=PINPOINTS), tiles),
    Kind("LlavaNextVideo", _llava(image_grid_pinpoints=PINPOINTS, video_token_id=VIDEO), tiles),
    Kind(
        "LlavaOnevision",
        _llava(SIGLIP, image_grid_pinpoints=PINPOINTS, video_token_id=VIDEO),
        tiles_of_prompts,
    ),
    Kind(
        "Qwen2VL",
        _qwen({"embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}),
        grids,
        types=MM,
    ),
    Kind(
        "Qwen2_5_VL",
        _qwen(WINDOWS),
        grids,
        types=MM,
    ),
    Kind("Qwen3VL", _qwen(DEEP), grids, types=MM),
    Kind(
        "InternVL",
        lambda: {
            "vision_config": {
                "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
                "image_size": [48, 48], "patch_size": [8, 8],
            },
            "text_config": {"model_type": "qwen2", **TEXT},
            "downsample_ratio": 0.5,
            **TOKENS,
        },
        plain,
    ),
    Kind(
        "Idefics3",
        lambda: {
            "vision_config": {k: v for k, v in CLIP.items() if k != "model_type"},
            "text_config": {"model_type": "llama", **TEXT},
            "scale_factor": 2,
            **TOKENS,
        },
        listed,
    ),
    Kind(
        "SmolVLM",
        lambda: {
            "vision_config": {k: v for k, v in CLIP.items() if k != "model_type"},
            "text_config": {"model_type": "llama", **TEXT},
            "scale_factor": 2,
            **TOKENS,
        },
        listed,
    ),
    Kind(
        "PaliGemma",
        lambda: {
            "vision_config": {**SIGLIP, "projection_dim": 32},
            "text_config": {"model_type": "gemma", **TEXT, "head_dim": 8},
            "projection_dim": 32,
            **TOKENS,
        },
        plain,
        types=("token_type_ids", 0, 0),
    ),
    Kind(
        "Gemma3",
        lambda: {
            "vision_config": {**SIGLIP},
            "text_config": {**TEXT, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
            "mm_tokens_per_image": 9,
            **TOKENS,
        },
        plain,
        decoder=False,
        types=("token_type_ids", 0, 1),
    ),
    Kind(
        "Mistral3",
        lambda: {
            "vision_config": {
                "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
                "num_attention_heads": 4, "image_size": 48, "patch_size": 8, "head_dim": 8,
            },
            "text_config": {"model_type": "mistral", **TEXT, "head_dim": 8, "sliding_window": None},
            "spatial_merge_size": 2,
            "vision_feature_layer": -1,
            **TOKENS,
        },
        sized,
    ),
    Kind("LlavaPixtral", _llava(PIXTRAL, vision_feature_layer=-1, **FULL), sized, family="Llava"),
    Kind("LlavaSiglip", _llava(SIGLIP, **FULL), plain, family="Llava"),
    Kind("VideoLlava", _llava(image_token_index=IMAGE, video_token_index=VIDEO), named("pixel_values_images")),
    Kind("DeepseekVL", _llava(SIGLIP), plain),
    Kind("DeepseekVLHybrid", _llava(SIGLIP, high_res_vision_config=SAM), two_sizes),
    Kind(
        "Janus",
        _llava(
            {**VISION, "model_type": "janus_vision_model", "mlp_ratio": 1.5, "image_size": 48, "projection_dim": 32},
            vq_config={
                "embed_dim": 4, "num_embeddings": 16, "base_channels": 32, "channel_multiplier": [1, 1],
                "num_res_blocks": 1, "latent_channels": 8, "image_token_embed_dim": 32, "projection_dim": 32,
            },
        ),
        plain,
    ),
    Kind(
        "PaliGemma2",
        lambda: {
            "vision_config": {**SIGLIP, "projection_dim": 32},
            "text_config": {"model_type": "gemma2", **TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, **WINDOW},
            "projection_dim": 32,
            **TOKENS,
        },
        plain,
        decoder=False,
        family="PaliGemma",
        types=("token_type_ids", 0, 0),
    ),
    Kind("AyaVision", _llava(SIGLIP, COHERE, downsample_factor=2), plain, decoder=False),
    Kind(
        "Cohere2Vision",
        _llava(SIGLIP, COHERE, downsample_factor=2, alignment_intermediate_size=64),
        plain,
        decoder=False,
    ),
    Kind(
        "MistralLarge4",
        _llava(
            PIXTRAL,
            {"model_type": "mistral_large4_text", **EXPERTS, **LATENT, "index_head_dim": 8, "index_n_heads": 2},
            spatial_merge_size=2,
            image_token_index=IMAGE,
        ),
        sized,
        decoder=False,
    ),
    Kind("LightOnOcr", _llava(PIXTRAL, {"model_type": "qwen3", "head_dim": 8}, spatial_merge_size=2), sized),
    Kind(
        "QianfanOCR",
        _llava(
            {**VISION, "intermediate_size": 48, "image_size": [48, 48], "patch_size": [8, 8]},
            {"model_type": "qwen3", "head_dim": 8},
            downsample_ratio=0.5,
        ),
        plain,
    ),
    Kind(
        "Ovis2",
        _llava(
            {**VISION, "intermediate_size": 48, "image_size": 48, "vocab_size": 64, "hidden_stride": 2},
            {"model_type": "qwen2"},
            vocab_size=SIZE,
            hidden_size=32,
            visual_indicator_token_ids=[80, 81, 82, 83, 84],
        ),
        plain,
    ),
    Kind(
        "Lfm2Vl",
        _llava(
            {
                "model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 48,
                "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 8, "num_patches": 36,
                "vision_use_head": False,
            },
            {
                "model_type": "lfm2", "layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": 48,
                "block_auto_adjust_ff_dim": False,
            },
            projector_hidden_size=32,
        ),
        ragged,
        decoder=False,
    ),
    Kind("Glm4v", _glm(), grids, types=MM),
    Kind("Glm4vMoe", _glm(text={**EXPERTS, "head_dim": 8}), grids, types=MM),
    Kind("Glm46V", _glm("glm4v_vision", {"model_type": "glm4v_text"}), grids, types=MM),
    Kind("GlmOcr", _glm(text={"head_dim": 8}), grids, types=MM),
    Kind("Qwen3VLMoe", _qwen(DEEP, {**FEW, "num_local_experts": 4}), grids, types=MM),
    Kind("Qwen3_5", _qwen(POSITIONS, LINEAR), grids, decoder=False, types=MM),
    Kind(
        "Qwen3_5Moe",
        _qwen(POSITIONS, {**LINEAR, **FEW, "shared_expert_intermediate_size": 16}),
        grids,
        decoder=False,
        types=MM,
    ),
    Kind(
        "Exaone4_5_",
        _qwen(
            {**WINDOWS, "num_key_value_heads": 2},
            {"model_type": "exaone4", "rope_parameters": None, "layer_types": ["full_attention"] * 4, **NO_WINDOW},
        ),
        grids,
    ),
    Kind(
        "HyperCLOVAXVisionV2",
        _qwen({**WINDOWS, "model_type": "qwen2_5_vl_vision"}, {"model_type": "hyperclovax", "rope_parameters": None}),
        grids,
    ),
    Kind(
        "VideoLlama3",
        lambda: {
            "vision_config": {**VISION, "intermediate_size": 48},
            "text_config": {"model_type": "qwen2", **TEXT},
            "video_token_id": VIDEO,
            **TOKENS,
        },
        with_merge_sizes,
    ),
    Kind(
        "PaddleOCRVL",
        lambda: {
            "vision_config": {**VISION, "intermediate_size": 48, "image_size": 48},
            "text_config": {**TEXT, "rope_parameters": MROPE, "head_dim": 8},
            "video_token_id": VIDEO,
            **TOKENS,
        },
        still_squares,
        types=MM,
    ),
    Kind(
        "Kimi_K25",
        lambda: {
            "vision_config": {
                "patch_size": 8, "pos_emb_height": 6, "pos_emb_width": 6, "num_attention_heads": 4,
                "num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48, "merge_kernel_size": [2, 2],
            },
            "text_config": {
                "model_type": "deepseek_v3", **TEXT, **EXPERTS, **LATENT,
            },
            "projection_hidden_size": 32,
            "video_token_id": VIDEO,
            **TOKENS,
        },
        still_squares,
    ),
    Kind(
        "Ernie4_5_VLMoe",
        lambda: {
            "vision_config": {
                "depth": 4, "hidden_size": 32, "num_heads": 4, "patch_size": 8, "intermediate_size": 48,
                "spatial_merge_size": 2, "temporal_merge_size": 2,
            },
            "text_config": {
                **TEXT, "rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]}, "moe_intermediate_size": [16, 16],
                "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1,
                "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            },
            "image_start_token_id": 93, "image_end_token_id": 94,
            "video_start_token_id": 95, "video_end_token_id": 96, "video_token_id": VIDEO,
            **TOKENS,
        },
        still,
        reads=False,
        types=MM,
    ),
    Kind(
        "HunYuanVL",
        lambda: {
            "vision_config": {
                **VISION, "intermediate_size": 48, "image_size": 48, "spatial_merge_size": 2, "text_hidden_size": 32,
                "out_hidden_size": 32,
            },
            "text_config": {**TEXT, "head_dim": 8, "rope_parameters": {**MROPE, "mrope_section": [1, 1, 1, 1]}},
            "image_start_token_id": 93, "image_end_token_id": 94,
            **TOKENS,
        },
        still,
        reads=False,
        types=MM,
        since=(5, 23),
    ),
    Kind(
        "Aria",
        _llava(
            {**VISION, "model_type": "idefics3_vision", "intermediate_size": 48, "image_size": 48},
            {"model_type": "aria_text", "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
            projector_patch_to_query_dict={36: 9},
        ),
        plain,
        reads=False,
    ),
    Kind(
        "Idefics2",
        lambda: {
            "vision_config": {**VISION, "intermediate_size": 48, "image_size": 48},
            "text_config": {"model_type": "mistral", **TEXT, **NO_WINDOW},
            "perceiver_config": {
                "resampler_n_latents": 6, "resampler_depth": 2, "resampler_n_heads": 4, "resampler_head_dim": 8,
                "num_key_value_heads": 2,
            },
            **TOKENS,
        },
        listed,
        reads=False,
    ),
    Kind(
        "Gemma4",
        lambda: {
            "vision_config": {
                **VISION, "intermediate_size": 48, "num_key_value_heads": 4, "head_dim": 8, "pooling_kernel_size": 2,
                "position_embedding_size": 36, "default_output_length": 9,
            },
            "text_config": {
                **TEXT, "head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0, **WINDOW,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            "video_token_id": VIDEO,
            "audio_token_id": 97,
            "boi_token_id": 93,
            "eoi_token_id": 94,
            **TOKENS,
        },
        placed,
        reads=False,
        decoder=False,
        types=MM,
    ),
    Kind("GotOcr2", _llava({**SAM, "model_type": "got_ocr2_vision"}, {"model_type": "qwen2"}), larger, reads=False),
    Kind(
        "Step3p7",
        _llava(
            {
                **VISION, "model_type": "step3p5_vision", "intermediate_size": 48, "image_size": 128, "mlp_ratio": 1.5,
                "max_position_embeddings": 256,
            },
            {
                "model_type": "step3p5", "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
                "moe_intermediate_size": 16, "share_expert_dim": 16, "num_sliding_attention_heads": 4, **WINDOW,
            },
        ),
        larger,
        reads=False,
    ),
]  # fmt: skip
INSTALLED = tuple(map(int, transformers.__version__.split(".")[:2]))
KINDS = [k for k in KINDS if k.since <= INSTALLED and hasattr(transformers, f"{k.family or k.name}Config")]
BY_NAME = {kind.name: kind for kind in KINDS}
NAMES = list(BY_NAME)


@dataclass
class Prompts:
    """A batch of prompts for a model, padded on the left."""

    model: Any
    inputs: dict[str, Any]
    tokens: list[int] = field(default_factory=list)


@cache
def _build(name: str) -> nn.Module:
    kind = BY_NAME[name]
    torch.manual_seed(11)
    family = kind.family or name
    config = getattr(transformers, family + "Config")(**kind.config())
    model = getattr(transformers, family + "ForConditionalGeneration")(config)
    for parameter in model.parameters():  # far from their small initial values, so that every part matters
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.25)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model.eval()


def build(name: str) -> Any:
    """A fresh tiny model."""
    import copy

    return copy.deepcopy(_build(name))


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


def prompts(name: str, model: Any, counts: list[int], seed: int = 0, side: str = "left") -> dict[str, Any]:
    """Inputs for prompts with ``counts`` images each and texts of different lengths."""
    kind = BY_NAME[name]
    pixels = kind.pixels(images(sum(counts), seed), counts) if sum(counts) else {}
    lengths = visual_lengths(model, pixels, counts) if pixels else []
    generator = torch.Generator().manual_seed(seed + 1)
    rows, queue = [], list(lengths)
    for b, n in enumerate(counts):
        row = [1]
        for _ in range(n):
            row += torch.randint(2, WORDS, (2,), generator=generator).tolist() + [93] + [IMAGE] * queue.pop(0) + [94]
        row += torch.randint(2, WORDS, (4 + 2 * b,), generator=generator).tolist()
        rows.append(row)
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros_like(ids)
    for b, row in enumerate(rows):
        part = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[b, part], mask[b, part] = torch.tensor(row), 1
    inputs = {"input_ids": ids, "attention_mask": mask, **pixels}
    if kind.types is not None:
        key, text, image = kind.types
        inputs[key] = torch.where(ids == IMAGE, image, text)
    return inputs


@torch.no_grad()
def visual_lengths(model: Any, pixels: dict[str, Any], counts: list[int]) -> list[int]:
    """Placeholders that each image needs."""
    features = model.model.get_image_features(**pixels, return_dict=True).pooler_output
    lengths = [len(row) for row in features]
    if len(lengths) != sum(counts):  # one row a prompt
        lengths = [n // k for n, k in zip(lengths, counts, strict=True) for _ in range(k)]
    return lengths
