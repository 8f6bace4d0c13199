"""K-medoids and DPC-KNN, one image at a time."""

from __future__ import annotations

import math

import numpy as np

from .common import Gap, Slots, argmax, descending


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Euclidean."""
    return math.sqrt(sum((a - b) ** 2))


def assign(x: np.ndarray, centers: list[int], gap: Gap) -> list[int]:
    """The nearest center of every token; centers belong to themselves."""
    found = []
    for token in range(len(x)):
        near = argmax([-distance(x[token], x[c]) for c in centers], gap if token not in centers else Gap())
        found.append(centers.index(token) if token in centers else near)
    return found


def kmedoids(
    x: np.ndarray, weight: list[float], count: int, iterations: int, released: bool
) -> tuple[list[int], list[int], float]:
    """Medoids, the cluster of every token, and the smallest gap."""
    gap = Gap()
    centers = descending(weight, gap)[:count]
    for _ in range(iterations):
        cluster = assign(x, centers, gap)
        moved = []
        for number in range(count):
            members = [token for token in range(len(x)) if cluster[token] == number]
            if released:
                cost = [weight[c] * sum(distance(x[c], y) for y in x) for c in members]
            else:
                cost = [sum(weight[j] * distance(x[c], x[j]) for j in members) for c in members]
            moved.append(members[argmax([-value for value in cost], gap)])
        centers = moved
    return centers, assign(x, centers, gap), gap.value


def dpcknn(x: np.ndarray, count: int, neighbours: int) -> tuple[list[int], list[int], float]:
    """Centers, the cluster of every token, and the smallest gap."""
    gap, tokens, width = Gap(), len(x), x.shape[1]
    apart = [[distance(a, b) for b in x] for a in x]
    density = [
        math.exp(-sum((d / math.sqrt(width)) ** 2 for d in sorted(row)[:neighbours]) / min(neighbours, tokens))
        for row in apart
    ]
    score = []
    for token in range(tokens):
        denser = [apart[token][other] for other in range(tokens) if density[other] > density[token]]
        score.append(density[token] * (min(denser) if denser else max(map(max, apart))))
    centers = descending(score, gap)[:count]
    return centers, assign(x, centers, gap), gap.value


def slots_of(centers: list[int], cluster: list[int], prefix: int) -> Slots:
    """The tokens of every slot, the prefix first."""
    patches = [[token + prefix for token, c in enumerate(cluster) if c == number] for number in range(len(centers))]
    return [[token] for token in range(prefix)] + patches
