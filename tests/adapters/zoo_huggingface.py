"""Every kind of vision encoder of transformers that tokred knows, built small from a config, with random parameters."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.idefics2 import modeling_idefics2
from transformers.models.kosmos2 import modeling_kosmos2
from transformers.models.ovis2 import modeling_ovis2

from . import zoo

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 64, "patch_size": 8}
MLP = {"intermediate_size": 96}
LABELS = {"num_labels": 7}
SHUFFLED = {"vision_output_dim": 48, "projector_input_dim": 48, "projector_output_dim": 48, "pixel_shuffle_ratio": 0.5}
SEGMENTS = {
    "num_hidden_layers": 4,
    "num_blocks": 1,
    "num_queries": 5,
    "num_upscale_blocks": 1,
    "num_register_tokens": 2,
}

# name: class of the model, class of the config, what is not as in SMALL
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "vit": (hf.ViTForImageClassification, hf.ViTConfig, {**MLP, **LABELS}),
    "vit-pooled": (hf.ViTModel, hf.ViTConfig, MLP),
    "deit": (hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig, {**MLP, **LABELS}),
    "vit-msn": (hf.ViTMSNForImageClassification, hf.ViTMSNConfig, {**MLP, **LABELS}),
    "vit-mae": (hf.ViTMAEModel, hf.ViTMAEConfig, {**MLP, "mask_ratio": 0.0}),
    "ijepa": (hf.IJepaForImageClassification, hf.IJepaConfig, {**MLP, **LABELS}),
    "beit": (
        hf.BeitForImageClassification,
        hf.BeitConfig,
        {**MLP, **LABELS, "use_relative_position_bias": True, "use_mean_pooling": True},
    ),
    "beit-shared": (
        hf.BeitForImageClassification,
        hf.BeitConfig,
        {**MLP, **LABELS, "use_shared_relative_position_bias": True, "use_mean_pooling": False},
    ),
    "pixio": (hf.PixioModel, hf.PixioConfig, MLP),
    "internvl": (
        hf.InternVLVisionModel,
        hf.InternVLVisionConfig,
        {**MLP, "image_size": [64, 64], "patch_size": [8, 8]},
    ),
    "clip": (hf.CLIPVisionModelWithProjection, hf.CLIPVisionConfig, {**MLP, "projection_dim": 24}),
    "metaclip2": (hf.MetaClip2VisionModelWithProjection, hf.MetaClip2VisionConfig, {**MLP, "projection_dim": 24}),
    "altclip": (hf.AltCLIPVisionModel, hf.AltCLIPVisionConfig, MLP),
    "chinese-clip": (hf.ChineseCLIPVisionModel, hf.ChineseCLIPVisionConfig, MLP),
    "clipseg": (hf.CLIPSegVisionModel, hf.CLIPSegVisionConfig, MLP),
    "git": (hf.GitVisionModel, hf.GitVisionConfig, MLP),
    "owlvit": (hf.OwlViTVisionModel, hf.OwlViTVisionConfig, MLP),
    "owlv2": (hf.Owlv2VisionModel, hf.Owlv2VisionConfig, MLP),
    "siglip": (hf.SiglipVisionModel, hf.SiglipVisionConfig, MLP),
    "siglip2": (hf.Siglip2VisionModel, hf.Siglip2VisionConfig, {**MLP, "num_patches": 64}),
    "dinov2": (hf.Dinov2ForImageClassification, hf.Dinov2Config, {**LABELS, "mlp_ratio": 2}),
    "dinov2-swiglu": (hf.Dinov2Model, hf.Dinov2Config, {"mlp_ratio": 2, "use_swiglu_ffn": True}),
    "dinov2-registers": (
        hf.Dinov2WithRegistersForImageClassification,
        hf.Dinov2WithRegistersConfig,
        {**LABELS, "mlp_ratio": 2, "num_register_tokens": 4},
    ),
    "dinov3": (hf.DINOv3ViTModel, hf.DINOv3ViTConfig, {**MLP, "num_register_tokens": 4}),
    "dinov3-gated": (
        hf.DINOv3ViTModel,
        hf.DINOv3ViTConfig,
        {**MLP, "num_register_tokens": 2, "use_gated_mlp": True, "hidden_act": "silu"},
    ),
    "aimv2": (hf.Aimv2VisionModel, hf.Aimv2VisionConfig, MLP),
    "ovis2": (
        modeling_ovis2.Ovis2VisionModel,
        hf.Ovis2VisionConfig,
        {
            **MLP,
            "vocab_size": 100,
            "hidden_stride": 2,
            "num_visual_indicator_tokens": 5,
            "tokenize_function": "softmax",
        },
    ),
    "blip2": (hf.Blip2VisionModel, hf.Blip2VisionConfig, MLP),
    "instructblip": (hf.InstructBlipVisionModel, hf.InstructBlipVisionConfig, MLP),
    "instructblip-video": (hf.InstructBlipVideoVisionModel, hf.InstructBlipVideoVisionConfig, MLP),
    "kosmos2": (modeling_kosmos2.Kosmos2VisionModel, modeling_kosmos2.Kosmos2VisionConfig, MLP),
    "janus": (hf.JanusVisionModel, hf.JanusVisionConfig, {"mlp_ratio": 2, "use_qk_norm": False}),
    "idefics2": (modeling_idefics2.Idefics2VisionTransformer, modeling_idefics2.Idefics2VisionConfig, MLP),
    "idefics3": (hf.Idefics3VisionTransformer, hf.Idefics3VisionConfig, MLP),
    "smolvlm": (hf.SmolVLMVisionTransformer, hf.SmolVLMVisionConfig, MLP),
    "qianfan": (
        hf.QianfanOCRVisionModel,
        hf.QianfanOCRVisionConfig,
        {**MLP, "image_size": [64, 64], "patch_size": [8, 8], "use_qk_norm": True},
    ),
    "tipsv2": (hf.Tipsv2VisionModel, hf.Tipsv2VisionConfig, {"mlp_ratio": 2, "num_register_tokens": 2}),
    "sapiens2": (
        hf.Sapiens2Model,
        hf.Sapiens2Config,
        {**MLP, "num_register_tokens": 2, "num_key_value_heads_per_layer": [3, 1, 3]},
    ),
    "radio": (hf.RadioModel, hf.RadioConfig, {"mlp_ratio": 2.0, "max_img_size": 128}),
    "dpt": (hf.DPTModel, hf.DPTConfig, {**MLP, "is_hybrid": False}),
    "yolos": (
        hf.YolosForObjectDetection,
        hf.YolosConfig,
        {
            **MLP,
            **LABELS,
            "image_size": [64, 64],
            "num_detection_tokens": 6,
            "use_mid_position_embeddings": False,
        },
    ),
    "vitpose": (
        hf.VitPoseBackbone,
        hf.VitPoseBackboneConfig,
        {"mlp_ratio": 2, "image_size": [64, 64], "patch_size": [8, 8], "out_features": ["stage3"]},
    ),
    "videomae": (
        hf.VideoMAEForVideoClassification,
        hf.VideoMAEConfig,
        {**MLP, **LABELS, "num_frames": 4, "patch_size": 16, "use_mean_pooling": True},
    ),
    "vivit": (
        hf.VivitForVideoClassification,
        hf.VivitConfig,
        {**MLP, **LABELS, "num_frames": 4, "tubelet_size": [2, 16, 16]},
    ),
}
MODELS |= {
    "vjepa2": (
        hf.VJEPA2ForVideoClassification,
        hf.VJEPA2Config,
        {
            **LABELS,
            "mlp_ratio": 2,
            "patch_size": 16,
            "crop_size": 64,
            "frames_per_clip": 4,
            "num_pooler_layers": 1,
            "pred_hidden_size": 24,
            "pred_num_attention_heads": 1,
            "pred_num_hidden_layers": 1,
        },
    ),
    "mlcd": (hf.MLCDVisionModel, hf.MLCDVisionConfig, MLP),
    "llama4": (hf.Llama4VisionModel, hf.Llama4VisionConfig, {"intermediate_size": 192, **SHUFFLED}),
    "videoprism": (
        hf.VideoPrismForVideoClassification,
        hf.VideoPrismVisionConfig,
        {
            **MLP,
            **LABELS,
            "num_spatial_layers": 3,
            "num_temporal_layers": 1,
            "num_frames": 4,
            "tubelet_size": [1, 8, 8],
            "attn_logit_softcapping": 2.0,
        },
    ),
    "pix2struct": (
        hf.Pix2StructVisionModel,
        hf.Pix2StructVisionConfig,
        {"d_ff": 96, "d_kv": 16, "seq_len": 64, "patch_embed_hidden_size": 192},
    ),
    "eomt": (hf.EomtForUniversalSegmentation, hf.EomtConfig, {**SEGMENTS, "mlp_ratio": 2}),
    "videomt": (hf.VideomtForUniversalSegmentation, hf.VideomtConfig, {**SEGMENTS, "mlp_ratio": 2}),
    "eomt-dinov3": (hf.EomtDinov3ForUniversalSegmentation, hf.EomtDinov3Config, {**SEGMENTS, **MLP}),
    "gemma4": (
        hf.Gemma4VisionModel,
        hf.Gemma4VisionConfig,
        {**MLP, "head_dim": 16, "num_key_value_heads": 3, "pooling_kernel_size": 2, "standardize": True},
    ),
    "step3p7": (hf.Step3p7VisionModel, hf.Step3p7VisionConfig, {"mlp_ratio": 2.0}),
}
NEWER: set[str] = set()  # families that the installed transformers does not have
if hasattr(hf, "GraniteDoclingVisionModel"):
    from transformers.models.unlimited_ocr import modeling_unlimited_ocr as unlimited

    MODELS["granite-docling"] = (
        hf.GraniteDoclingVisionModel,
        hf.GraniteDoclingVisionConfig,
        {**MLP, "out_hidden_size": 64, "deepstack_visual_indexes": [0, 1], "use_fine_route": False},
    )
    MODELS["unlimited-ocr"] = (
        unlimited.UnlimitedOcrVisionEncoder,
        unlimited.UnlimitedOcrVisionEncoderConfig,
        MLP,
    )
    MODELS["molmo2"] = (
        hf.Molmo2VisionModel,
        hf.Molmo2VisionConfig,
        {**MLP, "num_key_value_heads": 3, "head_dim": 16, "image_size": [64, 64]},
    )
else:
    NEWER = {"granite_docling_vision", "molmo2_vision", "unlimited_ocr_vision_encoder"}
# images in one sequence: folder, class of the model, class of the config, what is not as in SMALL
QWEN = {**MLP, "depth": 3, "num_heads": 3, "out_hidden_size": 24, "num_position_embeddings": 64}
QWEN_DEEP = {**QWEN, "deepstack_visual_indexes": (0, 1)}
GLM = {**MLP, "depth": 3, "num_heads": 3, "out_hidden_size": 24, "projection_intermediate_size": 32}
PACKED: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "qwen2-vl": (
        "qwen2_vl",
        "Qwen2VisionTransformerPretrainedModel",
        "Qwen2VLVisionConfig",
        {"embed_dim": 48, "hidden_size": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 2},
    ),
    "qwen3-vl": ("qwen3_vl", "Qwen3VLVisionModel", "Qwen3VLVisionConfig", QWEN_DEEP),
    "qwen3-vl-moe": ("qwen3_vl_moe", "Qwen3VLMoeVisionModel", "Qwen3VLMoeVisionConfig", QWEN_DEEP),
    "qwen3.5": ("qwen3_5", "Qwen3_5VisionModel", "Qwen3_5VisionConfig", QWEN),
    "qwen3.5-moe": ("qwen3_5_moe", "Qwen3_5MoeVisionModel", "Qwen3_5MoeVisionConfig", QWEN),
    "qwen4-exp": ("qwen4_exp", "Qwen4ExpVisionModel", "Qwen4ExpVisionConfig", QWEN),
    "qwen3-omni": ("qwen3_omni_moe", "Qwen3OmniMoeVisionEncoder", "Qwen3OmniMoeVisionEncoderConfig", QWEN_DEEP),
    "cohere-compass": ("cohere_compass", "CohereCompassVisionModel", "CohereCompassVisionConfig", QWEN_DEEP),
    "ernie": (
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoeVisionTransformerPretrainedModel",
        "Ernie4_5_VLMoeVisionConfig",
        {**MLP, "depth": 3, "num_heads": 3},
    ),
    "glm4v": ("glm4v", "Glm4vVisionModel", "Glm4vVisionConfig", GLM),
    "glm4v-moe": ("glm4v_moe", "Glm4vMoeVisionModel", "Glm4vMoeVisionConfig", GLM),
    "glm5": ("glm5_next", "Glm5NextVisionModel", "Glm5NextVisionConfig", GLM),
    "glm-ocr": ("glm_ocr", "GlmOcrVisionModel", "GlmOcrVisionConfig", GLM),
    "glm-image": ("glm_image", "GlmImageVisionModel", "GlmImageVisionConfig", GLM),
    "kimi": (
        "kimi_k25",
        "Kimi_K25VisionModel",
        "Kimi_K25VisionConfig",
        {**MLP, "pos_emb_height": 8, "pos_emb_width": 8},
    ),
    "cosmos3": ("cosmos3_edge", "Cosmos3EdgeVisionModel", "Cosmos3EdgeVisionConfig", {**MLP, "num_patches": 64}),
    "video-llama3": ("video_llama_3", "VideoLlama3VisionModel", "VideoLlama3VisionConfig", MLP),
    "paddleocr": ("paddleocr_vl", "PaddleOCRVisionModel", "PaddleOCRVisionConfig", MLP),
    "minimax": ("minimax_m3_vl", "MiniMaxM3VLVisionModel", "MiniMaxM3VLVisionConfig", MLP),
    "hunyuan": (
        "hunyuan_vl",
        "HunYuanVLVisionTransformer",
        "HunYuanVLVisionConfig",
        {**MLP, "out_hidden_size": 24, "text_hidden_size": 24, "max_image_size": 64},
    ),
    "inkling2": (
        "inkling2",
        "Inkling2VisionModel",
        "Inkling2VisionConfig",
        {**MLP, "posemb_grid_size": 8, "projection_hidden_dim": 24, "text_hidden_size": 24},
    ),
    "pixtral": ("pixtral", "PixtralVisionModel", "PixtralVisionConfig", MLP),
}
for name, (folder, model_class, config_class, knobs) in PACKED.items():
    if find_spec(f"transformers.models.{folder}") is None:
        NEWER.add(f"{folder}_vision")
        continue
    modelling = import_module(f"transformers.models.{folder}.modeling_{folder}")
    if (
        name == "minimax"
        and "max_seqlen" not in inspect.signature(modelling.MiniMaxM3VLVisionAttention.forward).parameters
    ):
        NEWER.add("minimax_m3_vl_vision")  # in transformers 5.18 its images see each other
        continue
    configuring = import_module(f"transformers.models.{folder}.configuration_{folder}")
    MODELS[name] = (getattr(modelling, model_class), getattr(configuring, config_class), knobs)
NAMELESS = set() if hf.Ovis2VisionConfig.model_type else {"ovis2_vision"}  # transformers 5.18 does not name it
if NAMELESS:
    del MODELS["ovis2"]

CLIPS = ("videomae", "vivit")
MASKED = ("idefics2", "idefics3", "smolvlm")  # take a mask of patches
UNPOOLED = (*MASKED, "pix2struct")
QUERIES = ("eomt", "eomt-dinov3", "videomt")  # queries join the sequence in front of the last blocks
DENSE = ("ovis2", "janus", "yolos", "vitpose", "vjepa2", "step3p7", "molmo2", "granite-docling", "gemma4", "llama4")
DENSE += ("videoprism", "unlimited-ocr", *QUERIES, *PACKED)
# the blocks of these hand out a row for every token, whatever they compute


EAGER_ONLY = ("git", "videoprism")
LARGER = {"hidden_size": 192, "intermediate_size": 768}  # so that what is counted by blocks is most of the cost


def build(name: str, attention: str = "sdpa", **changes: Any) -> nn.Module:
    """The model in evaluation mode, three blocks of width 48, with parameters from :func:`zoo.randomise`."""
    model_class, config_class, more = MODELS[name]
    knobs = {**SMALL, **more, **changes}
    if name == "siglip2":
        knobs.pop("image_size")
    if name == "vivit":
        knobs.pop("patch_size")
    if name in ("vjepa2", "pix2struct", "gemma4"):
        knobs.pop("image_size")
    if name == "pix2struct":
        knobs.pop("patch_size")
    attention = "eager" if name in EAGER_ONLY else attention
    model = model_class._from_config(config_class(**knobs), attn_implementation=attention).eval()
    zoo.randomise(model)
    return model


def side(name: str, pixels: int) -> Any:
    """A size of images, as the config takes it."""
    given = MODELS[name][2].get("image_size")
    return [pixels, pixels] if isinstance(given, list) else pixels


def packed_images(name: str, grids: list[tuple[int, int]], first: int = 0) -> dict[str, Any]:
    """Random images of so many rows and columns of patches, in one sequence; image i is always that of seed i."""
    each = [packed_pixels(name, grid, first + i) for i, grid in enumerate(grids)]
    if name == "pixtral":
        sides = [[8 * rows, 8 * columns] for rows, columns in grids]
        most = [max(side) for side in zip(*sides, strict=True)]
        padded = [nn.functional.pad(x, (0, most[1] - x.shape[2], 0, most[0] - x.shape[1])) for x in each]
        return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(sides)}
    merged = 2 if name == "inkling2" else 1
    shape = torch.tensor([[1, rows // merged, columns // merged] for rows, columns in grids])
    pixels = torch.cat(each)
    given = set(inspect.signature(MODELS[name][0].forward).parameters)
    named = {
        "hidden_states": pixels,
        "pixel_values": pixels[None] if name == "paddleocr" else pixels,
        "merge_sizes": torch.ones(len(grids), dtype=torch.int64),
        "grid_thw": shape,
        "image_grid_thw": shape,
    }
    return {key: value for key, value in named.items() if key in given}


def packed_pixels(name: str, grid: tuple[int, int], seed: int) -> Tensor:
    """The patches of one image."""
    generator, patches = torch.Generator().manual_seed(seed), grid[0] * grid[1]
    if name == "pixtral":
        return torch.randn(3, 8 * grid[0], 8 * grid[1], generator=generator)
    if name == "inkling2":
        return torch.randn(patches // 4, 16, 16, 3, generator=generator)
    if name in ("kimi", "paddleocr"):
        return torch.randn(patches, 3, 8, 8, generator=generator)
    frames = getattr(MODELS[name][1], "temporal_patch_size", 1)
    return torch.randn(patches, 192 * frames, generator=generator)


def images(name: str, batch: int = 2, side: int = 64) -> dict[str, Any]:
    """Random images as the model takes them; of those that are packed into one sequence there is one."""
    generator = torch.Generator().manual_seed(0)
    if name in PACKED:
        return packed_images(name, [(8, 8)])
    if name == "siglip2":
        return {
            "pixel_values": torch.randn(batch, 64, 192, generator=generator),
            "pixel_attention_mask": torch.ones(batch, 64, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[8, 8]] * batch),
        }
    if name in ("vjepa2", "videomt", "videoprism"):
        return {"pixel_values_videos": torch.randn(batch, 4, 3, side, side, generator=generator)}
    if name == "unlimited-ocr":
        return {"patch_embeds": torch.randn(batch, 48, side // 8, side // 8, generator=generator)}
    if name == "molmo2":
        return {"pixel_values": torch.randn(batch, 64, 192, generator=generator)}
    if name == "gemma4":
        places = torch.cartesian_prod(torch.arange(32), torch.arange(32)).flip(1)
        pixels = torch.rand(batch, 1024, 192, generator=generator)
        return {"pixel_values": pixels, "pixel_position_ids": places.expand(batch, -1, -1)}
    if name == "pix2struct":
        places = 1.0 + torch.cartesian_prod(torch.arange(8), torch.arange(8)).expand(batch, -1, -1)
        return {"flattened_patches": torch.cat([places, torch.randn(batch, 64, 192, generator=generator)], dim=2)}
    if name in CLIPS:
        return {"pixel_values": torch.randn(batch, 4, 3, side, side, generator=generator)}
    noise = {"noise": torch.rand(batch, 64, generator=generator)} if name == "vit-mae" else {}
    return {"pixel_values": torch.randn(batch, 3, side, side, generator=generator), **noise}


TEXT = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96, "vocab_size": 100}
TEXTS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "clip": (hf.CLIPTextModelWithProjection, hf.CLIPTextConfig, {"max_position_embeddings": 24, "projection_dim": 16}),
    "clip-argmax": (hf.CLIPTextModel, hf.CLIPTextConfig, {"max_position_embeddings": 24, "eos_token_id": 2}),
    "metaclip2": (hf.MetaClip2TextModel, hf.MetaClip2TextConfig, {"max_position_embeddings": 24}),
    "siglip": (hf.SiglipTextModel, hf.SiglipTextConfig, {"max_position_embeddings": 24, "projection_size": 48}),
    "siglip2": (hf.Siglip2TextModel, hf.Siglip2TextConfig, {"max_position_embeddings": 24, "projection_size": 48}),
}


def build_text(name: str) -> nn.Module:
    """A text model whose texts end in token 99."""
    model_class, config_class, more = TEXTS[name]
    model = model_class._from_config(config_class(**{**TEXT, "eos_token_id": 99, **more})).eval()
    zoo.randomise(model)
    return model


def texts() -> dict[str, Tensor]:
    """Two random texts of different length; behind the end comes padding."""
    ids = torch.randint(3, 99, (2, 24), generator=torch.Generator().manual_seed(0))
    ids[0, 20:], ids[1, 11:] = 99, 99
    return {"input_ids": ids}
