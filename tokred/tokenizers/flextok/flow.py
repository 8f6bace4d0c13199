"""Rectified flow: straight lines from pictures to noise, and how they are followed back."""

from collections.abc import Callable

import torch
from torch import Tensor

from tokred.errors import ConfigError
from tokred.tokenizers.flextok.guidance import Projected, Scale, plain, scale_at

Velocity = Callable[[Tensor, Tensor], Tensor]


def mix(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return the pictures [B, C, H, W] on the way to noise at times [B]: t * noise + (1 - t) * clean."""
    t = t.view(-1, *(1,) * (clean.ndim - 1)).to(clean.dtype)
    return t * noise + (1 - t) * clean


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """What a decoder has to predict: noise - clean."""
    return noise - clean


def follow(
    velocity: Velocity,
    noise: Tensor,
    steps: int,
    *,
    unconditional: Velocity | None = None,
    guidance: Scale = 1.0,
    projected: Projected | None = None,
) -> Tensor:
    """Go from noise [B, C, H, W] to pictures in equal Euler steps from t = 1.

    Args:
        velocity: from pictures [B, C, H, W] and a time [1] to the velocity, given the condition.
        noise: where to start.
        steps: how many.
        unconditional: the velocity without a condition; needed where the guidance is not 1.
        guidance: strength, or a function of the time at the start of a step.
        projected: projected guidance instead of plain.
    """
    if steps < 1:
        raise ConfigError(f"steps: {steps} must be at least 1.")
    x = noise
    times = torch.arange(steps, 0, -1, device=x.device, dtype=torch.float32) / steps
    for step in range(steps):
        t = times[step : step + 1]
        v = velocity(x, t)
        scale = scale_at(guidance, (steps - step) / steps)
        if scale != 1:
            if unconditional is None:
                raise ConfigError("Guidance needs a velocity without condition.")
            u = unconditional(x, t)
            v = plain(v, u, scale) if projected is None else projected(v, u, scale)
        x = x - v / steps
    return x
