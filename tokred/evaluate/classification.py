"""Top-1 accuracy as counts, so that parts of a data set can be added up."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Accuracy:
    """How many of ``total`` pictures were named right.

    >>> (Accuracy(1, 2) + Accuracy(2, 2)).top1
    75.0
    """

    correct: int
    total: int

    @property
    def top1(self) -> float:
        """Percent; NaN where nothing was counted."""
        return 100 * self.correct / self.total if self.total else float("nan")

    def __add__(self, other: "Accuracy") -> "Accuracy":
        return Accuracy(self.correct + other.correct, self.total + other.total)

    def __str__(self) -> str:
        return f"{self.top1:.2f} % ({self.correct} of {self.total})"


@torch.inference_mode()
def top1(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | str | None = None,
    report: Callable[[int], None] | None = None,
) -> Accuracy:
    """Count the pictures whose label gets the highest logit.

    The model runs in eval mode and is given back in the mode it was in.

    Args:
        batches: pairs of pictures [B, C, H, W] and labels [B], as :class:`tokred.data.Batches` yields.
        device: where to run; by default where the model's parameters are.
        report: called after each batch with the number of pictures counted so far.
    """
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    correct, total = torch.zeros((), dtype=torch.long, device=device), 0
    try:
        for images, labels in batches:
            logits = model(images.to(device, non_blocking=True))
            correct += (logits.argmax(-1) == labels.to(device, non_blocking=True)).sum()
            total += len(labels)
            if report is not None:
                report(total)
    finally:
        model.train(was_training)
    return Accuracy(int(correct), total)
