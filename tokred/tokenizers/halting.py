"""When to stop: which tokens of a picture are not needed for a requested error (KARL, arXiv 2507.07995)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

# errors that can be requested: mean absolute, pixels in [0, 1]
GRID = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.38)
THRESHOLD = 0.75


def is_halted(logits: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Return bool, true for tokens whose probability of halting is above the threshold."""
    return logits.sigmoid() > threshold


def calibrated_index(quality: float, reached: Sequence[float]) -> int:
    """Return which error to ask for so that ``quality`` is what comes out.

    Args:
        quality: the error that is wanted.
        reached: the mean error that came out where each value of :data:`GRID` was asked for; those behind the largest,
            which training hardly saw, are left alone.

    >>> calibrated_index(0.1, [0.045, 0.05, 0.07, 0.11, 0.09])
    3
    """
    trained = range(max(range(len(reached)), key=reached.__getitem__) + 1)
    return min(trained, key=lambda index: abs(reached[index] - quality))


def attention_allowed(halted: Tensor, others: int) -> Tensor:
    """Return bool [B, N, N] for ``others`` tokens with those of ``halted`` [B, K] behind: these see only themselves.

    >>> attention_allowed(torch.tensor([[False, True]]), 1)[0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    live = torch.nn.functional.pad(~halted, (others, 0), value=True)  # [B, N]
    itself = torch.eye(live.shape[1], dtype=torch.bool, device=halted.device)
    return live[:, :, None] & live[:, None, :] | itself


def keep_loss(logits: Tensor) -> Tensor:
    """Mean binary cross-entropy of halting logits against "go on"."""
    return softplus(logits.float()).mean()


def halt_loss(logits: Tensor) -> Tensor:
    """Mean binary cross-entropy of halting logits against "halt"."""
    return softplus(-logits.float()).mean()


def halting_target(tokens: int, budget: int) -> Tensor:
    """Return [K]: 0 for the first ``budget`` tokens, 1 for the rest."""
    return (torch.arange(tokens) >= budget).float()


def halting_loss(logits: Tensor, budget: int) -> Tensor:
    """Return the loss of logits [B, K] where the first ``budget`` tokens did; the means of both parts are added."""
    loss = keep_loss(logits[:, :budget])
    return loss if budget >= logits.shape[1] else loss + halt_loss(logits[:, budget:])


def grid_index(error: Tensor, grid: Tensor) -> Tensor:
    """Return the index of the smallest value of ``grid`` that is at least the requested error, else of the last.

    >>> grid_index(torch.tensor([0.05, 0.051, 9.0]), torch.tensor(GRID)).tolist()
    [5, 6, 18]
    """
    return torch.bucketize(error, grid).clamp(max=len(grid) - 1)
