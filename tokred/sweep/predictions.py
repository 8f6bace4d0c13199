"""What a model says about every image of a data set, or of a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Predictions:
    """Classes that a model gives to N readable images, beside the labels.

    Attributes:
        predicted: int64 [N].
        labels: int64 [N].
        confidence: float32 [N], the probability of the predicted class.
        skipped: images that could not be read, with the reason.
    """

    predicted: Tensor
    labels: Tensor
    confidence: Tensor
    skipped: tuple[str, ...] = ()

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Predictions:
        """Read logits [N, classes]."""
        confidence = logits.float().softmax(-1).amax(-1)
        return cls(logits.argmax(-1).cpu(), labels, confidence.cpu())

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Predictions:
        """Put parts together, in order: nothing is computed, so the whole equals one that was never cut."""
        if not parts:
            return cls(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0))
        tensors = (torch.cat([getattr(p, name) for p in parts]) for name in ("predicted", "labels", "confidence"))
        return cls(*tensors, skipped=tuple(file for part in parts for file in part.skipped))

    @property
    def right(self) -> Tensor:
        """bool [N]: whether an image gets its label."""
        return self.predicted == self.labels

    @property
    def top1(self) -> float:
        """Percent of the images that get their label."""
        return 100 * self.right.double().mean().item()


def pack_bits(flags: Sequence[bool] | Tensor) -> bytes:
    """Eight answers a byte, so that every point can keep all of its own."""
    return np.packbits(np.asarray(flags, dtype=bool)).tobytes()


def unpack_bits(packed: bytes, count: int) -> np.ndarray:
    """The first ``count`` of the answers that :func:`pack_bits` took.

    >>> unpack_bits(pack_bits([True, False, True]), 3).tolist()
    [True, False, True]
    """
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count).astype(bool)
