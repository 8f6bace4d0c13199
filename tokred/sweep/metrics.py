"""What a sweep measures only where it is asked to: a function a metric, by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from tokred.bench.energy import joules
from tokred.bench.memory import is_out_of_memory, resident_peak
from tokred.bench.timing import compare
from tokred.evaluate.neighbours import neighbour_classes
from tokred.sweep.predictions import Predictions
from tokred.sweep.subject import Subject

MetricName = Literal["knn", "probe", "cosine", "energy", "rss"]


@dataclass(frozen=True)
class Look:
    """What a metric may look at.

    Attributes:
        subject: model and images.
        model: the same model with the method of the point in it.
        reached: what it said about all images.
        rounds: timed pairs.
    """

    subject: Subject
    model: nn.Module
    reached: Predictions
    rounds: int

    @property
    def features(self) -> Tensor:
        """[N, D] of all images."""
        assert self.reached.features is not None
        return self.reached.features


def _knn(look: Look) -> dict[str, Any]:
    known = look.subject.learned
    assert known.features is not None
    found = neighbour_classes(look.features, known.features, known.labels)
    return {"knn_top1": 100 * (found == look.reached.labels).double().mean().item()}


def _probe(look: Look) -> dict[str, Any]:
    return {"probe_top1": look.subject.probe.accuracy(look.features, look.reached.labels)}


def _cosine(look: Look) -> dict[str, Any]:
    plain = look.subject.reference.features
    assert plain is not None
    return {"feature_cosine": cosine_similarity(look.features, plain, dim=-1).double().mean().item()}


def _energy(look: Look) -> dict[str, Any]:
    images, device = look.subject.first, look.subject.device
    with torch.inference_mode():
        before, after = (joules(partial(model, images), device) for model in (look.subject.model, look.model))
    if before is None or after is None:
        return {"note": f"energy left out: NVML does not count it for {device}"}
    return {"joules_per_image": after / len(images), "joules_per_image_unpatched": before / len(images)}


def _rss(look: Look) -> dict[str, Any]:
    with torch.inference_mode():
        found = resident_peak(lambda: look.model(look.subject.first))
    return {"note": "rss left out: this system does not say it"} if found is None else {"rss_mb": found / 1e6}


METRICS: dict[str, Callable[[Look], dict[str, Any]]] = {
    "knn": _knn,
    "probe": _probe,
    "cosine": _cosine,
    "energy": _energy,
    "rss": _rss,
}


def throughput(look: Look, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Images per second at several batch sizes, beside the unpatched model; nothing at those that memory does not hold.

    The images of the first batch are repeated as often as a batch needs.
    """
    plain, patched, images = look.subject.model, look.model, look.subject.first
    found: list[tuple[float, float, float] | tuple[None, None, None]] = []
    for size in sizes:
        batch = images.repeat(-(-size // len(images)), 1, 1, 1)[:size]
        try:
            with torch.inference_mode():
                both = partial(plain, batch), partial(patched, batch)
                pairs = compare(*both, rounds=look.rounds, device=look.subject.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found.append((None, None, None))
        else:
            found.append((size / pairs.other.median, size / pairs.base.median, pairs.ratio))
    columns = ("throughput", "throughput_unpatched", "throughput_speedup")
    values = ([row[at] for row in found] for at in range(len(columns)))
    return {"throughput_batch_sizes": list(sizes), **dict(zip(columns, values, strict=True))}
