"""A small random CLIP, as files and as an object."""

import torch

from tokred.clip_assets import ClipConfig, ImageTower, TextTower, build_clip
from tokred.data.scenes import WORDS
from tokred.data.words import WordTokenizer

CONFIG = ClipConfig(
    architecture="clip",
    embed_dim=16,
    vision=ImageTower(image_size=48, patch_size=8, width=32, layers=3, head_width=16, mlp_ratio=2.0),
    text=TextTower(context_length=32, width=32, layers=1, heads=2),
    words=WORDS,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    templates=("a small {}", "a large {}"),
    zero_shot="single-shapes",
    data="scenes",
)


def tiny_clip():
    """Return (model, tokenizer)."""
    torch.manual_seed(0)
    return build_clip(CONFIG).eval(), WordTokenizer(CONFIG.words, CONFIG.text.context_length)
