"""What can stand on an axis, and which points no other point beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from tokred.errors import ConfigError


@dataclass(frozen=True)
class Axis:
    """A column of the results.

    Attributes:
        column: its name.
        title: for people.
        more_is_better: which way is better.
    """

    column: str
    title: str
    more_is_better: bool


_AXES = (
    Axis("top1", "top-1 accuracy (%)", True),
    Axis("top5", "top-5 accuracy (%)", True),
    Axis("ece", "expected calibration error (%)", False),
    Axis("worst_class_drop", "accuracy that the worst class loses (%)", False),
    Axis("image_to_text_r1", "image to text, R@1 (%)", True),
    Axis("image_to_text_r5", "image to text, R@5 (%)", True),
    Axis("text_to_image_r1", "text to image, R@1 (%)", True),
    Axis("text_to_image_r5", "text to image, R@5 (%)", True),
    Axis("exact_match", "exact match (%)", True),
    Axis("score", "score of the suite", True),
    Axis("knn_top1", "top-1 of the nearest neighbours (%)", True),
    Axis("feature_cosine", "cosine with the unpatched features", True),
    Axis("agreement", "agreement with the unpatched model (%)", True),
    Axis("speedup", "speed-up over the unpatched model", True),
    Axis("ideal_speedup", "ratio of MACs to the unpatched model", True),
    Axis("images_per_second", "images per second", True),
    Axis("texts_per_second", "texts per second", True),
    Axis("latency_p50_ms", "median time of a batch (ms)", False),
    Axis("latency_p95_ms", "95th percentile of the time of a batch (ms)", False),
    Axis("latency_p99_ms", "99th percentile of the time of a batch (ms)", False),
    Axis("peak_memory_mb", "peak activation memory (MB)", False),
    Axis("rss_mb", "peak resident memory of the process (MB)", False),
    Axis("joules_per_image", "energy per image (J)", False),
    Axis("gmacs", "GMACs per image", False),
    Axis("mean_tokens", "tokens per block, mean", False),
    Axis("visual_tokens", "visual tokens per prompt", False),
    Axis("prefill_speedup", "speed-up of the prefill", True),
    Axis("prefill_ms", "median time of a prefill (ms)", False),
    Axis("tokens_per_second", "generated tokens per second", True),
    Axis("kv_cache_mb", "KV cache of a batch (MB)", False),
    Axis("bits", "bits per picture", False),
    Axis("tokens", "tokens per picture", False),
    Axis("psnr", "PSNR of the estimate (dB)", True),
    Axis("psnr_drawn", "PSNR of the decoded picture (dB)", True),
    Axis("ssim", "SSIM", True),
    Axis("pixel_error", "mean absolute error of the estimate", False),
    Axis("feature_distance", "distance of features", False),
    Axis("frechet_distance", "Frechet distance of features", False),
    Axis("probe_top1", "linear probe (%)", True),
    Axis("encode_images_per_second", "pictures encoded per second", True),
    Axis("decode_images_per_second", "pictures decoded per second", True),
)
AXES = {axis.column: axis for axis in _AXES}
# (x, y) that are worth a plot, for whatever a sweep is about
_FRONTS = (
    ("gmacs", "top1"), ("speedup", "top1"), ("gmacs", "exact_match"), ("prefill_speedup", "exact_match"),
    ("gmacs", "score"), ("prefill_speedup", "score"), ("gmacs", "agreement"), ("bits", "psnr"),
    ("decode_images_per_second", "psnr_drawn"),
)  # fmt: skip


def axis(column: str) -> Axis:
    """The axis of that name.

    Raises:
        ConfigError: there is none; the message gives the nearest.
    """
    if column not in AXES:
        near = get_close_matches(column, AXES, n=1, cutoff=0)[0]
        raise ConfigError(f"No axis {column!r}; did you mean {near!r}? There are: {', '.join(AXES)}.")
    return AXES[column]


def pareto_front(rows: Sequence[dict[str, Any]], x: Axis, y: Axis) -> list[dict[str, Any]]:
    """The rows that no other row beats on one axis without losing on the other, from the best x to the best y.

    >>> rows = [{"gmacs": 1, "top1": 80}, {"gmacs": 2, "top1": 90}, {"gmacs": 2.5, "top1": 85}]
    >>> [row["top1"] for row in pareto_front(rows, AXES["gmacs"], AXES["top1"])]
    [80, 90]
    """
    sign_x, sign_y = (1 if a.more_is_better else -1 for a in (x, y))
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (-sign_x * row[x.column], -sign_y * row[y.column])):
        if not front or sign_y * row[y.column] > sign_y * front[-1][y.column]:
            front.append(row)
    return front


def have(rows: Sequence[dict[str, Any]], *columns: str) -> bool:
    """Whether some row has a value in all of these columns."""
    return any(all(row.get(column) is not None for column in columns) for row in rows)


def fronts(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The axes (x, y) that are worth a plot of these rows: those that some point has both values of."""
    found = [(x, y) for x, y in _FRONTS if have(rows, x, y)]
    if ("gmacs", "top1") in found:
        found.remove(("gmacs", "agreement"))  # which stands in for the accuracy where there are no labels
    return found
