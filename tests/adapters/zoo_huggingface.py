"""Every kind of vision encoder of transformers that tokred knows, built small from a config, with random parameters."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from . import zoo

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 64, "patch_size": 8}
MLP = {"intermediate_size": 96}
LABELS = {"num_labels": 7}

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
}


EAGER_ONLY = ("git",)


def build(name: str, attention: str = "sdpa", **changes: Any) -> nn.Module:
    """The model in evaluation mode, three blocks of width 48, with parameters from :func:`zoo.randomise`."""
    model_class, config_class, more = MODELS[name]
    knobs = {**SMALL, **more, **changes}
    if name == "siglip2":
        knobs.pop("image_size")
    attention = "eager" if name in EAGER_ONLY else attention
    model = model_class._from_config(config_class(**knobs), attn_implementation=attention).eval()
    zoo.randomise(model)
    return model


def images(name: str, batch: int = 2, side: int = 64) -> dict[str, Tensor]:
    """Random images as the model takes them."""
    generator = torch.Generator().manual_seed(0)
    if name == "siglip2":
        return {
            "pixel_values": torch.randn(batch, 64, 192, generator=generator),
            "pixel_attention_mask": torch.ones(batch, 64, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[8, 8]] * batch),
        }
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
