"""DynamicViT's predictor and losses, one image at a time; what was learned comes as arrays."""

from __future__ import annotations

import numpy as np

from .soft_slots import gelu, normalised, softmax


def scores(x: np.ndarray, p: dict[str, np.ndarray], policy: list[float]) -> np.ndarray:
    """[P] the probability that a patch is kept."""
    y = normalised(x, p["in_conv.0.weight"], p["in_conv.0.bias"])
    y = gelu(y @ p["in_conv.1.weight"].T + p["in_conv.1.bias"])
    half = (y.shape[1] + 1) // 2
    whole = sum(w * row[half:] for w, row in zip(policy, y, strict=True)) / sum(policy) + 1e-6
    y = np.stack([np.concatenate([row[:half], whole]) for row in y])
    for number in (0, 2, 4):
        y = y @ p[f"out_conv.{number}.weight"].T + p[f"out_conv.{number}.bias"]
        y = gelu(y) if number < 4 else y
    return softmax(y)[:, 0]


def ratio(masks: list[np.ndarray], shares: list[float]) -> float:
    """Masks [B, P] of every stage."""
    terms = [(image.mean() - q) ** 2 for mask, q in zip(masks, shares, strict=True) for image in mask]
    return sum(terms) / len(terms)


def divergence(teacher: np.ndarray, student: np.ndarray) -> float:
    """KL of two sets of logits [B, classes]."""
    p, q = softmax(teacher), softmax(student)
    return float((p * (np.log(p) - np.log(q))).sum(axis=1).mean())


def token_distance(tokens: np.ndarray, teacher: np.ndarray, mask: np.ndarray) -> float:
    """Mean square over the patches that stay."""
    return float(np.mean([((tokens[i] - teacher[i]) ** 2).mean() for i in zip(*mask.nonzero(), strict=True)]))
