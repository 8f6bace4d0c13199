"""EViT and Top-K: keep the patches of the highest class attention."""

from __future__ import annotations

import numpy as np

from .common import Gap, descending


def topk(importance: list[float], count: int, prefix: int) -> tuple[list[int], float]:
    """The tokens that stay, in the order of their score."""
    gap = Gap()
    order = descending(importance, gap)
    return list(range(prefix)) + [prefix + j for j in order[:count]], gap.value


def evit(x: np.ndarray, importance: list[float], count: int, prefix: int) -> tuple[list[int], np.ndarray, float]:
    """The tokens that stay, and the new rows: those tokens, then the sum of the others times their score."""
    kept, gap = topk(importance, count, prefix)
    fused = sum(importance[j - prefix] * x[j] for j in range(prefix, len(x)) if j not in kept)
    return kept, np.array([*x[kept], fused]), gap
