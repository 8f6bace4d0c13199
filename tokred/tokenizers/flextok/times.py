"""Times of a flow: 1 is noise, 0 the picture. How they are drawn in training and shown to a decoder."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

TimeLaw = Literal["logit_normal", "stratified", "uniform", "mode", "noisy"]
PERIOD = 256.0


def logit_normal(normal: Tensor) -> Tensor:
    """Sigmoid of standard normal draws [B]."""
    return normal.sigmoid()


def stratified(uniform: Tensor) -> Tensor:
    """Logit-normal, the draw of sample i from the i-th of B equal parts of the distribution."""
    count = len(uniform)
    quantile = (torch.arange(count, device=uniform.device) + uniform) / count
    return torch.special.ndtri(quantile).sigmoid()


def mode_biased(uniform: Tensor, scale: float = 0.25) -> Tensor:
    """More of the middle for positive scales (Esser et al., arXiv 2403.03206, equation 20)."""
    return 1 - uniform - scale * (torch.cos(torch.pi / 2 * uniform) ** 2 - 1 + uniform)


def noisy(uniform: Tensor) -> Tensor:
    """More of the noise: 1 - u^2."""
    return 1 - uniform**2


def draw_times(law: TimeLaw, batch: int, generator: torch.Generator | None = None, *, scale: float = 0.25) -> Tensor:
    """Return one time in [0, 1] for every sample, [B]."""
    if law == "logit_normal":
        return logit_normal(torch.randn(batch, generator=generator))
    uniform = torch.rand(batch, generator=generator)
    if law == "stratified":
        return stratified(uniform)
    if law == "mode":
        return mode_biased(uniform, scale)
    return noisy(uniform) if law == "noisy" else uniform


class TimeEmbedding(nn.Module):
    """Cosines and sines of the time at falling frequencies, then two linear layers with SiLU between.

    Args:
        max_time: the time that stands for pure noise in the frequencies; 1 for times in [0, 1].
    """

    def __init__(self, dim: int, features: int = 256, max_time: float = 1.0):
        super().__init__()
        self.max_time = max_time
        self.hidden = nn.Linear(features, dim)
        self.out = nn.Linear(dim, dim)

    def features(self, t: Tensor) -> Tensor:
        """Return [B, features] for times [B]: cosines first."""
        half = self.hidden.in_features // 2
        part = torch.arange(half, device=t.device, dtype=torch.float32) / half
        angle = t.float()[:, None] * (1000 / self.max_time * PERIOD**-part)
        return torch.cat([angle.cos(), angle.sin()], -1)

    def forward(self, t: Tensor) -> Tensor:
        """Return the embedding [B, D]."""
        return self.out(silu(self.hidden(self.features(t).to(self.hidden.weight.dtype))))
