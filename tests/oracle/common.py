"""What several methods need: cosines, attention, merging, and the bookkeeping of near-ties."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

Slots = list[list[int]]


class Gap:
    """The smallest difference seen among deciding comparisons."""

    def __init__(self) -> None:
        self.value = math.inf

    def between(self, a: float, b: float) -> None:
        """Two numbers whose order decides something."""
        if not (math.isinf(a) or math.isinf(b)):
            self.value = min(self.value, abs(a - b))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two vectors."""
    return float(sum(a * b) / (math.sqrt(sum(a * a)) * math.sqrt(sum(b * b))))


def argmax(values: list[float], gap: Gap) -> int:
    """The first index of the largest value."""
    best = 0
    for index in range(1, len(values)):
        if values[index] > values[best]:
            best = index
    for index, value in enumerate(values):
        if index != best:
            gap.between(value, values[best])
    return best


def descending(values: list[float], gap: Gap) -> list[int]:
    """Indices from the largest to the smallest value, the first index first on ties."""
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))
    for before, after in pairwise(order):
        gap.between(values[before], values[after])
    return order


def attention(q: np.ndarray, k: np.ndarray, size: np.ndarray | None = None) -> np.ndarray:
    """[H, N, N] softmax of ``q k / sqrt(d) + log size`` for queries and keys [H, N, d]."""
    heads, tokens, width = q.shape
    result = np.zeros((heads, tokens, tokens))
    for head in range(heads):
        for i in range(tokens):
            logits = [sum(q[head, i] * k[head, j]) / math.sqrt(width) for j in range(tokens)]
            if size is not None:
                logits = [logit + math.log(size[j]) for j, logit in enumerate(logits)]
            top = max(logits)
            weights = [math.exp(logit - top) for logit in logits]
            for j in range(tokens):
                result[head, i, j] = weights[j] / sum(weights)
    return result


def patch_importance(attn: np.ndarray, prefix: int, cls: bool) -> list[float]:
    """What the class token pays to every patch, head mean; without a class token what a patch receives on average."""
    heads, tokens, _ = attn.shape
    scores = []
    for j in range(prefix, tokens):
        rows = [0] if cls else range(tokens)
        total = sum(attn[head, i, j] for head in range(heads) for i in rows)
        scores.append(total / heads / len(rows))
    return scores


def weighted_mean(x: np.ndarray, size: np.ndarray, slots: Slots) -> tuple[np.ndarray, np.ndarray]:
    """Size-weighted average and summed size of every slot."""
    merged, sizes = [], []
    for members in slots:
        total = sum(size[j] for j in members)
        merged.append(sum(x[j] * size[j] for j in members) / total)
        sizes.append(total)
    return np.array(merged), np.array(sizes)
