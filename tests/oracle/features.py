"""Methods between image encoder and language model, token by token."""

from __future__ import annotations

import math

import numpy as np

from .common import Gap, argmax, cosine, descending

Weights = list[dict[int, float]]


def farthest(tokens: np.ndarray, count: int, weight: list[float] | None, first: int, gap: Gap) -> list[int]:
    """Greedy max-min choice by ``1 - cos``, weighted."""
    order = [first]
    while len(order) < count:
        rest = [i for i in range(len(tokens)) if i not in order]
        scores = [min(1 - cosine(tokens[i], tokens[j]) for j in order) for i in rest]
        if weight is not None:
            scores = [weight[i] * score for i, score in zip(rest, scores, strict=True)]
        order.append(rest[argmax(scores, gap)])
    return order


def nearest(tokens: np.ndarray) -> list[float]:
    """``1 - cos`` to the nearest other token."""
    return [
        min((1 - cosine(a, b) for j, b in enumerate(tokens) if j != i), default=math.inf) for i, a in enumerate(tokens)
    ]


def aim(tokens: np.ndarray, rounds: list[int], gap: Gap) -> Weights:
    """What every output token of AIM's merging holds of every original one."""
    slots: Weights = [{i: 1.0} for i in range(len(tokens))]
    for count in rounds:
        x = [sum(w * tokens[i] for i, w in slot.items()) for slot in slots]
        even, odd = range(0, len(x), 2), range(1, len(x), 2)
        best, partner = [], []
        for i in even:
            scores = [cosine(x[i], x[j]) for j in odd]
            partner.append(argmax(scores, gap))
            best.append(scores[partner[-1]])
        rank = descending(best, gap)
        groups = [[j] for j in odd]
        for index in rank[:count]:
            groups[partner[index]].append(even[index])
        merged = []
        for group in groups:
            slot: dict[int, float] = {}
            for member in group:
                for i, w in slots[member].items():
                    slot[i] = slot.get(i, 0.0) + w / len(group)
            merged.append(slot)
        slots = [slots[even[index]] for index in rank[count:]] + merged
    return slots


def visionzip(score: list[float], keys: np.ndarray, dominant: int, contextual: int, gap: Gap) -> Weights:
    """Dominant tokens, then targets plus the mean of those most similar to them."""
    best = sorted(descending(score, gap)[:dominant])
    remaining = [i for i in range(len(score)) if i not in best]
    step = len(remaining) // contextual
    targets = remaining[::step][:contextual]
    joined: list[list[int]] = [[] for _ in targets]
    for i in remaining:
        if i not in targets:
            joined[argmax([cosine(keys[i], keys[t]) for t in targets], gap)].append(i)
    slots: Weights = [{i: 1.0} for i in best]
    return slots + [
        {t: 1.0, **dict.fromkeys(others, 1 / max(1, len(others)))} for t, others in zip(targets, joined, strict=True)
    ]


def outliers(score: list[float], factor: float = 1.5) -> int:
    """Scores above the third quartile plus ``factor`` interquartile ranges, quartiles interpolated linearly."""
    values = sorted(score)

    def quartile(share: float) -> float:
        place = share * (len(values) - 1)
        low = math.floor(place)
        high = min(low + 1, len(values) - 1)
        return values[low] + (place - low) * (values[high] - values[low])

    bound = quartile(0.75) + factor * (quartile(0.75) - quartile(0.25))
    return sum(value > bound for value in score)


def prumerge(score: list[float], keys: np.ndarray, near: int, gap: Gap) -> Weights:
    """Outliers plus their neighbours, and one token for all that are dropped."""
    share = outliers(score) / len(score)
    kept = descending(score, gap)[: max(1, int(len(score) * share))]
    slots: Weights = []
    for i in kept:
        others = [j for j in range(len(score)) if j != i]
        order = descending([cosine(keys[i], keys[j]) for j in others], gap)[:near]
        slots.append({i: 1.0, **{others[index]: score[others[index]] for index in order}})
    return [*slots, {i: score[i] for i in range(len(score)) if i not in kept}]


def vispruner(
    score: list[float], tokens: np.ndarray, count: int, important: float, dropped: int, gap: Gap
) -> list[int]:
    """Important tokens, and what is left of the others after rounds of dropping duplicates; ascending."""
    rank = descending(score, gap)
    first = int(count * important)
    kept, rest = rank[:first], rank[first:]
    if count == first:
        return sorted(kept)
    while len(rest) > count - first:
        even, odd = rest[0::2], rest[1::2]
        best = [max(cosine(tokens[i], tokens[j]) for j in odd) for i in even]
        gone = min(dropped, len(rest) - (count - first), len(even))
        rest = [even[index] for index in descending(best, gap)[gone:]] + odd
    return sorted(kept + rest)


def knee(score: list[float], gap: Gap | None = None) -> int:
    """How many scores lie up to the point of their sorted curve that is furthest from its chord."""
    curve = sorted(score, reverse=True)
    if curve[0] == curve[-1]:
        return len(curve)
    distance = []
    for place, value in enumerate(curve):
        x, y = place / (len(curve) - 1), (value - curve[-1]) / (curve[0] - curve[-1])
        distance.append(abs(y - (1 - x)))
    best, second = sorted(distance, reverse=True)[:2]
    if gap is not None:
        gap.between(best, second)
    return distance.index(best) + 1


def density(keys: np.ndarray, threshold: float, neighbours: int) -> float:
    """Share of tokens with fewer than ``neighbours`` others of nearly the same key."""
    single = 0
    for i, a in enumerate(keys):
        alike = sum(cosine(a, b) > threshold for j, b in enumerate(keys) if j != i)
        single += alike < neighbours
    return single / len(keys)


def regions(score: np.ndarray, mosaic: tuple[int, int]) -> list[float]:
    """HiRED: sums of the scores [h, w] of the whole image in the regions of the tiles."""
    height, width = score.shape
    sums = [0.0] * (mosaic[0] * mosaic[1])
    for y in range(height):
        for x in range(width):
            sums[y * mosaic[0] // height * mosaic[1] + x * mosaic[1] // width] += score[y, x]
    return sums


def fopru(attention: np.ndarray, prefix: int, count: int, gap: Gap) -> list[int]:
    """The most significant patches by an attention [H, T, T], ascending."""
    mean = attention.mean(axis=0)[prefix:, prefix:]
    patches = len(mean)
    received = [sum(mean[i, j] for i in range(patches)) / patches for j in range(patches)]
    given = [sum(mean[i, j] for j in range(patches)) / patches for i in range(patches)]
    spread = [sum((value - sum(row) / patches) ** 2 for value in row) for row in (received, given)]
    gap.between(*spread)
    return sorted(descending(received if spread[0] > spread[1] else given, gap)[:count])
