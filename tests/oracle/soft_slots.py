"""PatchMerger, SiT and Sinkhorn, one image at a time; what they learned comes as arrays."""

from __future__ import annotations

import math

import numpy as np


def softmax(values: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    weights = np.exp(values - values.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def normalised(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Layer norm of every row."""
    rows = [(row - row.mean()) / math.sqrt(row.var() + 1e-5) * weight + bias for row in x]
    return np.stack(rows)


def gelu(x: np.ndarray) -> np.ndarray:
    """With the error function."""
    return np.vectorize(lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))))(x)


def patchmerger(x: np.ndarray, p: dict[str, np.ndarray], count: int, scaled: bool) -> np.ndarray:
    """The new tokens."""
    y = normalised(x, p["norm.weight"], p["norm.bias"])
    logits = p["queries"][:count] @ y.T
    return softmax(logits / math.sqrt(x.shape[1]) if scaled else logits) @ y


def sit(x: np.ndarray, p: dict[str, np.ndarray], count: int) -> np.ndarray:
    """The new tokens."""
    hidden = normalised(x, p["weight.0.weight"], p["weight.0.bias"]) @ p["weight.1.weight"].T + p["weight.1.bias"]
    logits = gelu(hidden) @ p["weight.3.weight"][:count].T + p["weight.3.bias"][:count]
    return softmax(p["scale"].item() * logits.T) @ x


def sinkhorn(x: np.ndarray, p: dict[str, np.ndarray], count: int, iterations: int, eps: float) -> np.ndarray:
    """The new tokens: rows and columns of the kernel are scaled in turn to uniform marginals."""
    y = x / np.sqrt((x**2).sum(axis=1, keepdims=True))
    v = p["v"][:count] / np.sqrt((p["v"][:count] ** 2).sum(axis=1, keepdims=True))
    plan, marginal = np.exp(v @ y.T / eps), 1 / (count + len(x))
    for _ in range(iterations):
        plan = plan * marginal / plan.sum(axis=1, keepdims=True)
        plan = plan * marginal / plan.sum(axis=0, keepdims=True)
    return (plan * (count + len(x))) @ y
