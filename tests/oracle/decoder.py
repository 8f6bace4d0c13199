"""Methods between the layers of a language model, one prompt without padding at a time, token by token."""

from __future__ import annotations

import math

import numpy as np

from .common import Gap, argmax, descending


def causal_attention(q: np.ndarray, k: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """[H, T, T] for queries [H, T, d] and keys [G, T, d], each used by H / G consecutive heads."""
    heads, tokens, width = q.shape
    result = np.zeros((heads, tokens, tokens))
    for head in range(heads):
        keys = k[head * k.shape[0] // heads]
        for i in range(tokens):
            logits = [float(q[head, i] @ keys[j]) / math.sqrt(width) / temperature for j in range(i + 1)]
            weights = [math.exp(logit - max(logits)) for logit in logits]
            for j in range(i + 1):
                result[head, i, j] = weights[j] / sum(weights)
    return result


def received(attn: np.ndarray, queries: list[int]) -> list[float]:
    """What every token gets on average from some queries, head mean."""
    heads, _, tokens = attn.shape
    total = [sum(attn[h, i, j] for h in range(heads) for i in queries) for j in range(tokens)]
    return [value / heads / max(len(queries), 1) for value in total]


def instruction(visual: list[bool]) -> list[int]:
    """Text behind the last visual token, or all text."""
    text = [j for j, is_visual in enumerate(visual) if not is_visual]
    last = max((j for j, is_visual in enumerate(visual) if is_visual), default=-1)
    return [j for j in text if j > last] or text


def keep_best(score: list[float], visual: list[bool], count: int, gap: Gap) -> list[int]:
    """Text and the best visual tokens, ascending."""
    candidates = [j for j, is_visual in enumerate(visual) if is_visual]
    order = descending([score[j] for j in candidates], gap)
    best = {candidates[i] for i in order[:count]}
    return [j for j, is_visual in enumerate(visual) if not is_visual or j in best]


def page_rank(q: np.ndarray, k: np.ndarray, temperature: float, iterations: int) -> list[float]:
    """AIM's importance."""
    attn = causal_attention(q, k, temperature)
    heads, tokens, _ = attn.shape
    votes = np.full((heads, tokens), 1 / tokens)
    for _ in range(iterations):
        after = np.zeros_like(votes)
        for h in range(heads):
            for i in range(tokens):
                for j in range(tokens):
                    after[h, j] += votes[h, i] * attn[h, i, j]
        votes = after
    return [math.sqrt(sum(votes[h, j] ** 2 for h in range(heads)) / heads) for j in range(tokens)]


def raters(x: np.ndarray, visual: list[bool], gap: Gap) -> list[int]:
    """SparseVLM's text raters."""
    text, images = instruction(visual), [j for j, is_visual in enumerate(visual) if is_visual]
    if not images:
        return text
    similarity = [0.0] * len(text)
    for v in images:
        logits = [float(x[v] @ x[t]) for t in text]
        weights = [math.exp(logit - max(logits)) for logit in logits]
        for n, weight in enumerate(weights):
            similarity[n] += weight / sum(weights) / len(images)
    mean = sum(similarity) / len(similarity)
    if len(text) > 1:
        for value in similarity:
            gap.between(value, mean)
    return [t for t, value in zip(text, similarity, strict=True) if value > mean] or text


def density_peaks(x: np.ndarray, count: int, neighbours: int, gap: Gap) -> list[int]:
    """The centre of every token's cluster."""
    number, width = x.shape
    distance = [[math.sqrt(sum((x[i] - x[j]) ** 2) / width) for j in range(number)] for i in range(number)]
    density = []
    for i in range(number):
        nearest = sorted(distance[i][j] for j in range(number) if j != i)[:neighbours]
        density.append(-sum(d * d for d in nearest) / max(len(nearest), 1))
    score = []
    for i in range(number):
        denser = [j for j in range(number) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        if number == 2:  # both have the same density, exactly
            denser = [0] if i == 1 else []
        else:
            for j in range(number):
                if j != i:
                    gap.between(density[i], density[j])
        isolation = min((distance[i][j] for j in denser), default=max(distance[i]))
        score.append(density[i] + math.log(isolation) if isolation else -math.inf)
    centres = sorted(descending(score, gap if number > 2 else Gap())[:count])
    owner = []
    for i in range(number):
        best = argmax([-distance[i][c] for c in centres], gap)
        owner.append(i if i in centres else centres[best])
    return owner


def sparsevlm(
    x: np.ndarray,
    score: list[float],
    visual: list[bool],
    count: int,
    recycle: float,
    groups: float,
    neighbours: int,
    gap: Gap,
) -> list[list[int]]:
    """Members of every slot, anchors first."""
    kept = keep_best(score, visual, count, gap)
    dropped = [j for j in range(len(visual)) if j not in kept]
    number = math.floor(len(dropped) * recycle + 1e-9)
    order = descending([score[j] for j in dropped], gap)
    pool = sorted(dropped[i] for i in order[:number])
    owner = density_peaks(x[pool], math.ceil(number * groups - 1e-9), neighbours, gap) if pool else []
    centres = [pool[i] for i in sorted(set(owner))]
    slots = {j: [j] for j in sorted(kept + centres)}
    for member, centre in enumerate(owner):
        if centre != member:
            slots[pool[centre]].append(pool[member])
    return list(slots.values())


def atp(
    q: np.ndarray,
    k: np.ndarray,
    visual: list[bool],
    places: list[tuple[int, int] | None],
    rates: list[float],
    penalty: float,
) -> tuple[list[float], list[float], list[float]]:
    """Self, cross and spatial score of every token."""
    heads, tokens, width = q.shape
    images = [j for j in range(tokens) if visual[j]]
    self_ = []
    for i in range(tokens):
        products = [float(q[h, i] @ k[h * k.shape[0] // heads, j]) for h in range(heads) for j in images]
        self_.append(sum(products) / math.sqrt(width) / max(len(products), 1))
    cross = received(causal_attention(q, k), instruction(visual))
    spatial = []
    for place in places:
        scores = [0.0]
        for rate in rates:
            stride = round(math.sqrt(1 / rate))
            if stride == 1 or (place is not None and place[0] % stride == 0 and place[1] % stride == 0):
                scores.append(1 - penalty * rate)
        spatial.append(max(scores))
    return self_, cross, spatial
