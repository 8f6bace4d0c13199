"""ATS: sample at even quantiles of the cumulative significance."""

from __future__ import annotations

import math

import numpy as np

from .common import Gap


def significance(attn: np.ndarray, values: np.ndarray, prefix: int, cls: bool) -> list[float]:
    """Class attention times value length, summed over the heads; attention [H, N, N], values [H, N, d]."""
    heads, tokens, _ = attn.shape
    scores = []
    for j in range(prefix, tokens):
        total = 0.0
        for head in range(heads):
            received = attn[head, 0, j] if cls else sum(attn[head, :, j]) / tokens
            total += received * math.sqrt(sum(values[head, j] ** 2))
        scores.append(total)
    return scores


def sample(score: list[float], count: int, released: bool, prefix: int) -> tuple[list[int], float]:
    """The tokens that stay: the prefix, and every patch that some quantile falls on."""
    gap, total, running, cumulative = Gap(), sum(score) + 1e-6, 0.0, []
    for value in score:
        running += value / total
        cumulative.append(running)
    quantiles = [(2 * i + 1) / (2 * count) for i in range(count)]
    if released:  # a half-open range in floating point
        start, end, step = 1 / (2 * count), (2 * count - 1) / (2 * count), 1 / count
        quantiles = quantiles[: math.ceil((end - start) / step)]
    picked = set()
    for quantile in quantiles:
        distances = [abs(quantile - c) for c in cumulative]
        nearest = distances.index(min(distances))
        for j, distance in enumerate(distances):
            if j != nearest:
                gap.between(distance, distances[nearest])
        picked.add(nearest)
    return list(range(prefix)) + [prefix + j for j in sorted(picked)], gap.value
