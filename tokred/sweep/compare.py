"""Which differences between two runs are outside the noise."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokred.errors import DataError
from tokred.sweep.predictions import unpack_bits
from tokred.sweep.store import read_results

QUALITY = ("top1", "exact_match", "agreement")  # percent of things that are counted
SCORES = ("score",)  # means with standard errors beside them
SPEED = ("speedup", "prefill_speedup")  # medians with quartiles beside them
_PAIRED = ("top1", "exact_match")  # that a bit for every thing is kept of


@dataclass(frozen=True)
class Difference:
    """One number of one point in two runs.

    Attributes:
        point: model, data, method and setting.
        column: what was measured.
        a: its value in the first run.
        b: in the second.
        test: how the difference was judged: ``McNemar`` (exact, on the same images), ``proportions`` (two
            independent ones, normal approximation), ``standard errors`` (of two means, as if they were independent) or
            ``quartiles`` (the middle halves of the timed pairs are apart).
        p: probability of such a difference by chance, corrected by Holm for all that were tested; ``None`` for
            quartiles.
        is_real: outside the noise.
    """

    point: tuple[str, str, str, str]
    column: str
    a: float
    b: float
    test: str
    p: float | None
    is_real: bool


def compare_results(a: str | Path, b: str | Path, alpha: float = 0.05) -> list[Difference]:
    """Compare the points that two folders share by model, data, method and setting.

    Args:
        a: folder of the first run.
        b: folder of the second.
        alpha: how often a difference in quality may be called real by mistake, in the whole comparison.

    Raises:
        DataError: a folder holds no results, or they share no point.
    """
    first, second = _finished(a), _finished(b)
    shared = [point for point in first if point in second]
    if not shared:
        raise DataError(f"{a} and {b} share no finished point; points are paired by model, data, method and setting.")
    found = [difference for point in shared for difference in _differences(point, first[point], second[point])]
    return _holm(found, alpha)


def mcnemar(only_a: int, only_b: int) -> float:
    """Probability of at least such a split of the things that one run alone got right, if neither run is better.

    Exact and two-sided: both numbers are drawn from a binomial distribution with p = 1/2.

    >>> mcnemar(5, 5), round(mcnemar(0, 6), 5)
    (1.0, 0.03125)
    """
    count, least = only_a + only_b, min(only_a, only_b)
    logs = (math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(least + 1))
    return min(1.0, 2 * math.fsum(math.exp(log - count * math.log(2)) for log in logs))


def two_proportions(a: float, count_a: int, b: float, count_b: int) -> float:
    """Probability of at least such a difference between two shares, if both are draws of the same chance.

    >>> round(two_proportions(0.50, 1000, 0.55, 1000), 4)
    0.0252
    """
    pooled = (a * count_a + b * count_b) / (count_a + count_b)
    error = math.sqrt(pooled * (1 - pooled) * (1 / count_a + 1 / count_b))
    return 1.0 if error == 0 else math.erfc(abs(a - b) / error / math.sqrt(2))


def two_means(a: float, error_a: float, b: float, error_b: float) -> float:
    """Probability of at least such a difference between two means with these standard errors, if they are the same.

    >>> round(two_means(0.60, 0.02, 0.65, 0.02), 4)
    0.0771
    """
    error = math.hypot(error_a, error_b)
    return float(a == b) if error == 0 else math.erfc(abs(a - b) / error / math.sqrt(2))


def _finished(folder: str | Path) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    rows = read_results(folder, predictions=True).to_dicts()
    places = ("model", "data", "method", "label")
    return {tuple(row[c] for c in places): row for row in rows if row["status"] == "finished"}  # type: ignore[misc]


def _differences(point: tuple[str, str, str, str], a: dict[str, Any], b: dict[str, Any]) -> Iterator[Difference]:
    for column in QUALITY:
        if a[column] is None or b[column] is None:
            continue
        if column in _PAIRED and _same_things(a, b):
            right = [unpack_bits(row["right"], row["images"]) for row in (a, b)]
            p, test = mcnemar(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())), "McNemar"
        else:
            p, test = two_proportions(a[column] / 100, a["images"], b[column] / 100, b["images"]), "proportions"
        yield Difference(point, column, a[column], b[column], test, p, False)
    for column in SCORES:
        error = f"{column}_stderr"
        if a["metric"] == b["metric"] and all(row[name] is not None for row in (a, b) for name in (column, error)):
            p = two_means(a[column], a[error], b[column], b[error])
            yield Difference(point, column, a[column], b[column], "standard errors", p, False)
    for column in SPEED:
        low, high = f"{column}_low", f"{column}_high"
        if all(row[name] is not None for row in (a, b) for name in (column, low, high)):
            apart = a[low] > b[high] or b[low] > a[high]
            yield Difference(point, column, a[column], b[column], "quartiles", None, apart)


def _same_things(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether both runs looked at the same images in the same order."""
    if not a["right"] or not b["right"]:
        return False
    return all(a[c] == b[c] for c in ("images", "skipped_files", "seed")) and _drawn(a) == _drawn(b)


def _drawn(row: dict[str, Any]) -> tuple[Any, ...]:
    config = json.loads(row["config"])
    return config["split"], config["images"]


def _holm(found: Sequence[Difference], alpha: float) -> list[Difference]:
    """Correct the probabilities for their number, smallest first (Holm 1979)."""
    tested = sorted((i for i, d in enumerate(found) if d.p is not None), key=lambda i: found[i].p or 0.0)
    corrected, largest = list(found), 0.0
    for rank, index in enumerate(tested):
        largest = max(largest, min(1.0, (found[index].p or 0.0) * (len(tested) - rank)))
        corrected[index] = replace(found[index], p=largest, is_real=largest < alpha)
    return corrected
