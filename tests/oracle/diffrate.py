"""DiffRate: sort by importance, prune the tail, merge what is next."""

from __future__ import annotations

import numpy as np

from .common import Gap, Slots, argmax, cosine, descending


def reduce(
    x: np.ndarray, size: np.ndarray, importance: list[float], prune_to: int, merge_to: int, prefix: int
) -> tuple[Slots, np.ndarray, np.ndarray, float]:
    """Slots, merged tokens and sizes; counts include the prefix."""
    gap = Gap()
    order = list(range(prefix)) + [prefix + j for j in descending(importance, gap)]
    order = order[:prune_to]
    slots = [[j] for j in order[:merge_to]]
    sizes = [float(size[j]) for j in order[:merge_to]]
    for i in order[merge_to:]:
        scores = [cosine(x[i], x[j]) for j in order[prefix:merge_to]]
        found = argmax(scores, gap)
        slots[prefix + found].append(i)
        sizes[prefix + found] += size[i] * scores[found]
    merged = [sum(x[j] for j in members) / len(members) for members in slots]
    return slots, np.array(merged), np.array(sizes), gap.value
