"""ToMe: bipartite soft matching."""

from __future__ import annotations

import numpy as np

from .common import Gap, Slots, argmax, cosine, descending


def match(metric: np.ndarray, r: int, prefix: int) -> tuple[Slots, float]:
    """Merge r pairs of the tokens [N, D]; prefix tokens take no part and come first.

    Tokens at even positions are A, at odd positions B. Every A finds its best B; the r best pairs merge.
    """
    tokens, gap = len(metric), Gap()
    r = min(r, (tokens - prefix) // 2)
    if r <= 0:
        return [[j] for j in range(tokens)], gap.value
    side_a = [j for j in range(prefix, tokens) if j % 2 == 0]
    side_b = [j for j in range(prefix, tokens) if j % 2 == 1]
    partner, best = {}, []
    for i in side_a:
        scores = [cosine(metric[i], metric[j]) for j in side_b]
        found = argmax(scores, gap)
        partner[i] = side_b[found]
        best.append(scores[found])
    order = [side_a[index] for index in descending(best, gap)]
    merged, unmerged = order[:r], order[r:]
    if prefix:
        unmerged = sorted(unmerged)
    slots = [[j] for j in range(prefix)] + [[i] for i in unmerged]
    slots += [[j] + [i for i in merged if partner[i] == j] for j in side_b]
    return slots, gap.value


def match_groups(metric: np.ndarray, k: int) -> tuple[Slots, float]:
    """k-th matching: the last token of every k takes in whoever likes it best; leftover tokens are dropped."""
    gap, whole = Gap(), len(metric) // k * k
    targets = list(range(k - 1, whole, k))
    slots = [[j] for j in targets]
    for i in range(whole):
        if i not in targets:
            slots[argmax([cosine(metric[i], metric[j]) for j in targets], gap)].append(i)
    return slots, gap.value
