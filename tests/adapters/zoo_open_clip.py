"""open_clip's visual towers, built small with random parameters."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from . import zoo

VISION = {"image_size": 64, "patch_size": 8, "width": 48, "head_width": 16, "layers": 3}
TEXT = {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 3}
DECODER = {**TEXT, "attn_pooler_heads": 2}

# what is not as in VISION
MODELS: dict[str, dict[str, Any]] = {
    "class-token": {},
    "layer-scale": {"ls_init_value": 0.1},
    "average": {"pool_type": "avg"},
    "average-then-norm": {"pool_type": "avg", "final_ln_after_pool": True},
    "attention-pool": {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2},
    "attention-pool-parallel": {"attentional_pool": "parallel", "attn_pooler_queries": 5, "attn_pooler_heads": 2},
    "attention-pool-cascade": {"attentional_pool": "cascade", "attn_pooler_queries": 5, "attn_pooler_heads": 2},
    "own-attention": {"block_type": "custom"},
    "qk-norm": {"qk_norm": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True, "scale_heads": True},
}


def build(name: str) -> nn.Module:
    """A CLIP model in evaluation mode with the visual tower ``name``, with parameters from :func:`zoo.randomise`."""
    model = CLIP(48, CLIPVisionCfg(**{**VISION, **MODELS[name]}), CLIPTextCfg(**TEXT)).eval()
    zoo.randomise(model)
    return model


def build_coca() -> nn.Module:
    """A CoCa model."""
    vision = {
        **VISION,
        "attentional_pool": True,
        "attn_pooler_queries": 5,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    }
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    model = CoCa(24, DECODER, text, vision).eval()
    zoo.randomise(model)
    return model


def images(batch: int = 2) -> Tensor:
    """Random images."""
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0))
