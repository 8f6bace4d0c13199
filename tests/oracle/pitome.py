"""PiToMe: energy, and merging in its order."""

from __future__ import annotations

import math

import numpy as np

from .common import Gap, Slots, argmax, cosine, descending


def removed(patches: int, keep: float) -> int:
    """Patches that one block removes."""
    return 0 if keep >= 1 else math.floor(patches - patches * keep)


def energy(patches: np.ndarray, margin: float, alpha: float = 1.0) -> list[float]:
    """Mean over all tokens of ELU(cos - margin)."""
    result = []
    for a in patches:
        total = 0.0
        for b in patches:
            z = cosine(a, b) - margin
            total += z if z > 0 else alpha * (math.exp(z) - 1)
        result.append(total / len(patches))
    return result


def gaussian_energy(patches: np.ndarray, margin: float) -> list[float]:
    """Mean over all tokens of a Gaussian kernel of width 1 - margin."""
    sigma, result = 1 - margin, []
    for a in patches:
        kernel = [
            math.exp(-(((1 - cosine(a, b)) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi)) for b in patches
        ]
        result.append(sum(kernel) / len(patches))
    return result


def match(metric: np.ndarray, r: int, prefix: int, margin: float, alpha: float, mode: str) -> tuple[Slots, float]:
    """Merge r of the patches of ``metric`` [N, D] in ``mode`` "protect", "order" or "text"."""
    gap = Gap()
    if r == 0:
        return [[j] for j in range(len(metric))], gap.value
    patches = metric[prefix:]
    score = gaussian_energy(patches, margin) if mode == "text" else energy(patches, margin, alpha)
    rank = [prefix + j for j in descending(score, gap)]
    unmerged: list[int] = []
    if mode == "order":
        protected, side_a, side_b = [], rank[0::2], rank[1::2]
    elif mode == "text":
        protected, side_a, side_b = rank[2 * r :], rank[:r], rank[r : 2 * r]
    else:
        protected, side_a, side_b = rank[2 * r :], rank[: 2 * r][0::2], rank[: 2 * r][1::2]
    partner, best = {}, []
    for i in side_a:
        scores = [cosine(metric[i], metric[j]) for j in side_b]
        found = argmax(scores, gap)
        partner[i] = side_b[found]
        best.append(scores[found])
    if mode == "order":
        order = [side_a[index] for index in descending(best, gap)]
        side_a, unmerged = order[:r], order[r:]
    slots = [[j] for j in range(prefix)] + [[j] for j in protected] + [[j] for j in unmerged]
    slots += [[j] + [i for i in side_a if partner[i] == j] for j in side_b]
    return slots, gap.value
