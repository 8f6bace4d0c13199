"""Away from the prediction without a condition: plain, and projected so that strong guidance does not overshoot."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from torch.linalg import vector_norm

Scale = float | Callable[[float], float]


def scale_at(scale: Scale, t: float) -> float:
    """The strength at a time; one without effect is 1."""
    return float(scale(t)) if callable(scale) else float(scale)


def plain(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598)."""
    return unconditional + scale * (conditional - unconditional)


@dataclass
class Projected:
    """Adaptive projected guidance (Sadat et al., arXiv 2410.02416), here on velocities; one object a sampling run.

    Attributes:
        momentum: of the running difference between the two predictions.
        threshold: largest norm of that difference for one picture; 0 for no limit.
        eta: how much stays of its part along the conditional prediction.
        running: the running difference, before the limit.
    """

    momentum: float = -0.5
    threshold: float = 2.5
    eta: float = 0.0
    running: Tensor | None = field(default=None, repr=False)

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Return the guided prediction for images [B, C, H, W]."""
        difference = conditional - unconditional
        if self.running is not None:
            difference = difference + self.momentum * self.running
        self.running = difference
        axes = tuple(range(1, difference.ndim))
        if self.threshold > 0:
            length = vector_norm(difference, dim=axes, keepdim=True)
            difference = difference * (self.threshold / length).clamp(max=1)  # a length of zero gives 1
        exact, direction = difference.double(), conditional.double()
        direction = direction / vector_norm(direction, dim=axes, keepdim=True).clamp(min=1e-12)
        along = (exact * direction).sum(axes, keepdim=True) * direction
        kept = exact - along + self.eta * along
        return conditional + (scale - 1) * kept.to(conditional.dtype)
