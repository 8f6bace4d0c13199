"""Zero-TPrune: votes on the attention graph, the head filter, and dropping of near copies."""

from __future__ import annotations

import math

import numpy as np

from .common import Gap, argmax, cosine, descending


def votes(attn: np.ndarray, rounds: int, cls: bool) -> np.ndarray:
    """Page rank of one head's attention [N, N]: what a token gets is what its voters have, times their attention."""
    tokens = len(attn)
    score = [math.sqrt(tokens) if cls and j == 0 else 1.0 for j in range(tokens)]
    score = [s / sum(score) for s in score]
    for _ in range(rounds):
        score = [sum(attn[i, j] * score[i] for i in range(tokens)) for j in range(tokens)]
    return np.array(score)


def importance(
    attn: np.ndarray, rounds: int, cls: bool, prefix: int, v_min: float, v_max: float, gap: Gap
) -> list[float]:
    """Root mean square over the heads whose patch scores, at mean 1, have a variance within the bounds."""
    heads = [votes(head, rounds, cls) for head in attn]
    passed = []
    for score in heads:
        patches = score[prefix:] / np.mean(score[prefix:])
        variance = float(np.mean((patches - 1) ** 2))
        gap.between(variance, v_min)
        gap.between(variance, v_max)
        if v_min <= variance <= v_max:
            passed.append(score)
    used = passed or heads
    return [math.sqrt(sum(score[j] ** 2 for score in used) / len(used)) for j in range(attn.shape[1])]


def drop_similar(
    keys: np.ndarray, score: list[float], removed: int, prefix: int, partition: str, gap: Gap
) -> list[int]:
    """Tokens that stay when ``removed`` patches with the closest copy on the other side are dropped."""
    order = [prefix + j for j in descending(score, gap)]
    half = len(order) // 2
    if partition == "alternate":
        side_a, side_b = order[1::2], order[0::2]
    elif partition == "important_first":
        side_a, side_b = order[:half], order[half:]
    else:
        side_a, side_b = order[len(order) - half :], order[: len(order) - half]
    best = []
    for i in side_a:
        scores = [cosine(keys[i], keys[j]) for j in side_b]
        best.append(scores[argmax(scores, Gap())])
    dropped = {side_a[index] for index in descending(best, gap)[:removed]}
    return [j for j in range(len(keys)) if j not in dropped]


def reduce(
    attn: np.ndarray,
    keys: np.ndarray,
    *,
    drop: int,
    prune: int,
    rounds: int,
    pre_rounds: int,
    partition: str,
    prefix: int,
    cls: bool,
    v_min: float,
    v_max: float,
) -> tuple[list[int], float]:
    """Stages I', S and I on attention [H, N, N] and keys [H, N, d]: the tokens that stay, in their old order."""
    gap, tokens = Gap(), attn.shape[1]
    kept = list(range(tokens))
    if drop:
        first = importance(attn, pre_rounds, cls, prefix, v_min, v_max, gap)
        joined = np.concatenate(list(keys), axis=1)
        kept = drop_similar(joined, first[prefix:], drop, prefix, partition, gap)
        attn = np.array([[[head[i, j] / sum(head[i, kept]) for j in kept] for i in kept] for head in attn])
    if prune:
        last = importance(attn, rounds, cls, prefix, v_min, v_max, gap)[prefix:]
        stay = descending(last, gap)[: len(last) - prune]
        kept = kept[:prefix] + [kept[prefix + j] for j in sorted(stay)]
    return kept, gap.value
