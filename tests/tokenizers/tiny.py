"""Tokenizers that cost nothing."""

from __future__ import annotations

import torch

from tokred.tokenizers.flextok.config import FlexTokConfig, Trunk
from tokred.tokenizers.flextok.model import FlexTok
from tokred.tokenizers.karl import KARL, KARLConfig
from tokred.tokenizers.titok import TiTok, TiTokConfig

TRUNK = Trunk(width=32, depth=2, head_width=16)
SHARED = {"channels": 1, "side": 16, "patch": 4, "encoder": TRUNK, "decoder": TRUNK}
FLEXTOK = FlexTokConfig(
    **{**SHARED, "encoder": TRUNK.model_copy(update={"mask": "prefix"})}, registers=6, levels=(8, 5)
)


def stirred(build, config):
    """Always the same model, no weight at zero, so that everything has an effect."""
    torch.manual_seed(1)
    model = build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def flextok(**changes):
    return stirred(FlexTok, FLEXTOK.model_copy(update=changes))


def karl(**changes):
    return stirred(KARL, KARLConfig(**{**SHARED, "tokens": 6, "codebook": 32, **changes}))


def titok(**changes):
    return stirred(TiTok, TiTokConfig(**{**SHARED, "tokens": 6, "codebook": 32, **changes}))


def pictures(count=3, channels=1, side=16):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(256, (count, channels, side, side), generator=generator).to(torch.uint8)
