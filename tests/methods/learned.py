"""Small models and learned parts far from where they start, for methods with learnable parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn


def small(name: str = "vit_tiny_patch16_224", **changes: Any) -> nn.Module:
    """A model of four blocks for images of 64 pixels: 16 patches."""
    torch.manual_seed(0)
    knobs = {"depth": 4, "embed_dim": 24, "num_heads": 2, "num_classes": 5, "img_size": 64, **changes}
    return timm.create_model(name, **knobs).eval()


def images(batch: int = 2, size: int = 64) -> Tensor:
    """Random ones."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def shaken(modules: Any, seed: int = 1) -> Any:
    """Learned parts far from where they start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in modules.parameters():
        parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return modules


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """The learned values."""
    return {name: value.double().numpy() for name, value in module.state_dict().items()}
