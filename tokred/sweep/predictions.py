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
        rank: int64 [N], how many classes get a higher logit than the label.
        features: [N, D] that the classes were read from, if somebody wants them.
        skipped: images that could not be read, with the reason.
    """

    predicted: Tensor
    labels: Tensor
    confidence: Tensor
    rank: Tensor
    features: Tensor | None = None
    skipped: tuple[str, ...] = ()

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, features: Tensor | None = None) -> Predictions:
        """Read logits [N, classes]; a label that is none of the classes stands behind all of them."""
        logits, classes = logits.float().cpu(), logits.shape[-1]
        own = logits.gather(-1, labels.clamp(max=classes - 1)[:, None])
        rank = torch.where(labels < classes, (logits > own).sum(-1), classes)
        kept = None if features is None else features.float().cpu()
        return cls(logits.argmax(-1), labels, logits.softmax(-1).amax(-1), rank, kept)

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Predictions:
        """Put parts together, in order: nothing is computed, so the whole equals one that was never cut."""
        skipped = tuple(file for part in parts for file in part.skipped)
        full = [part for part in parts if len(part.labels)]
        if not full:
            none = torch.zeros(0, dtype=torch.long)
            return cls(none, none, torch.zeros(0), none, skipped=skipped)
        names = ["predicted", "labels", "confidence", "rank"]
        if full[0].features is not None:
            names.append("features")
        return cls(**{name: torch.cat([getattr(p, name) for p in full]) for name in names}, skipped=skipped)

    @property
    def right(self) -> Tensor:
        """bool [N]: whether an image gets its label."""
        return self.predicted == self.labels

    @property
    def top1(self) -> float:
        """Percent of the images that get their label."""
        return 100 * self.right.double().mean().item()

    @property
    def top5(self) -> float:
        """Percent of the images whose label is among the five classes with the highest logits."""
        return 100 * (self.rank < 5).double().mean().item()


def pack_bits(flags: Sequence[bool] | Tensor) -> bytes:
    """Eight answers a byte, so that every point can keep all of its own."""
    return np.packbits(np.asarray(flags, dtype=bool)).tobytes()


def unpack_bits(packed: bytes, count: int) -> np.ndarray:
    """The first ``count`` of the answers that :func:`pack_bits` took.

    >>> unpack_bits(pack_bits([True, False, True]), 3).tolist()
    [True, False, True]
    """
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count).astype(bool)
