"""Measure one point."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokred.adapters import find_tower
from tokred.assets import load_model
from tokred.bench.explain import ideal_speedup
from tokred.bench.memory import memory_measure, peak_memory
from tokred.bench.timing import Comparison, compare
from tokred.cost import Cost, cost
from tokred.errors import DataError, TokredError
from tokred.evaluate.calibration import calibration_error
from tokred.methods import Method
from tokred.patching import patch, unwrap
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.sweep.metrics import METRICS, Look, throughput
from tokred.sweep.point import Point, TowerName
from tokred.sweep.predictions import Predictions, pack_bits
from tokred.sweep.subject import Subject
from tokred.sweep.worst import worst_columns

PERCENTILES = (50, 95, 99)  # of latency
_SHARE_OF_TIMING = 0.4  # of a point's progress


def measure(
    point: Point,
    subject: Subject,
    report: Callable[[float], None] = lambda share: None,
    parts: Sequence[Predictions] | None = None,
) -> dict[str, Any]:
    """Everything that is measured about a point, as columns of the results.

    Args:
        point: what to measure.
        subject: its model and images; the model is left unpatched.
        report: called with the share that is done.
        parts: what :func:`measure_part` found on all shards of the images, if they were split.
    """
    method = point.build()
    if method is None and parts is not None:
        subject.reference = subject.join(parts)
    unpatched = subject.classes  # first, so that a model that is broken by itself is not blamed on the patch
    plain, images = subject.model, subject.first
    patched = copy.deepcopy(plain)
    handle = None if method is None else patch(patched, method)
    if method is None:
        reached = subject.reference
    elif parts is not None:
        reached = subject.join(parts)
    else:
        reached = subject.predict(patched, lambda share: report(share * (1 - _SHARE_OF_TIMING)))
    with torch.inference_mode():
        pairs = compare(
            lambda: plain(images),
            lambda: patched(images),
            rounds=point.settings.rounds,
            device=subject.device,
            report=lambda share: report(1 - _SHARE_OF_TIMING * (1 - share)),
        )
        memory = subject.memory if method is None else peak_memory(lambda: patched(images), subject.device)
    asked = _asked(point, Look(subject, patched, reached, point.settings.rounds))
    if handle is not None:
        handle.remove()
    worst = {}
    if point.settings.worst and method is not None and not subject.note:
        worst = worst_columns(point.settings.worst, subject, patched, method, reached)
    before = cost(subject.tower.shape)
    after = before if method is None else cost_of(method, subject.tower.shape, patched, lambda: patched(images))
    return {
        **asked,
        "note": "; ".join(note for note in (subject.note, asked.get("note")) if note) or None,
        "adapter": subject.tower.family,
        **quality_columns(reached, unpatched),
        **({"agreement": None} if getattr(plain, "num_classes", None) == 0 else {}),
        **({"top1": None} if subject.note else label_columns(reached, unpatched, subject.class_name)),
        **speed_columns(pairs, len(images), is_reference=method is None),
        "peak_memory_mb": memory / 1e6,
        "peak_memory_mb_unpatched": subject.memory / 1e6,
        "memory_measure": memory_measure(subject.device),
        "gmacs": after.gmacs,
        "gmacs_unpatched": before.gmacs,
        "ideal_speedup": ideal_speedup(before, after),
        "mean_tokens": after.mean_tokens,
        "tokens_per_layer": list(after.tokens_per_layer),
        "predictions": reached.predicted.tolist() if method is None else None,
        **worst,
    }


def _asked(point: Point, look: Look) -> dict[str, Any]:
    """The metrics that the specification names; what they say is left out is one note."""
    found = [METRICS[name](look) for name in point.settings.metrics]
    if point.settings.throughput:
        found.append(throughput(look, point.settings.throughput))
    columns = {name: value for one in found for name, value in one.items()}
    return {**columns, "note": "; ".join(one["note"] for one in found if "note" in one)}


def measure_part(
    point: Point, subject: Subject, shard: int, shards: int, report: Callable[[float], None] = lambda share: None
) -> Predictions:
    """What a point says about one shard of the images."""
    method = point.build()
    if method is None:
        return subject.predict_part(subject.model, shard, shards, report)
    with patch(copy.deepcopy(subject.model), method) as handle:
        return subject.predict_part(handle.model, shard, shards, report)


def foresee_encoder(model: str) -> Callable[[Point], Cost | TokredError]:
    """Return what says what a point of a model will cost, computed from the shapes alone, or why it will fail."""
    return outlook_of(find_tower(unwrap(_outline(model))).shape)


def outlook_of(shape: ModelShape) -> Callable[[Point], Cost | TokredError]:
    """Return what says what a point of a model of this shape will cost, or why it will fail."""

    def outlook(point: Point) -> Cost | TokredError:
        method = point.build()
        try:
            return cost(shape) if method is None else method.cost(shape)
        except TokredError as error:
            return error

    return outlook


def _outline(model: str) -> nn.Module:
    """A model for the sake of its shapes; those of timm can be large and come without weights where that works."""
    import timm

    if timm.is_model(model):
        try:
            with torch.device("meta"):
                return load_model(model, pretrained=False)
        except (RuntimeError, NotImplementedError, DataError):  # it computes with its weights while it is built
            pass
    return load_model(model, pretrained=False)


def quality_columns(reached: Predictions, unpatched: Tensor) -> dict[str, Any]:
    """How many images were read, and how many of them keep the class [N] that the unpatched model gives.

    Raises:
        DataError: it saw another number of images.
    """
    if len(reached.predicted) != len(unpatched):
        raise DataError(
            f"{len(reached.predicted)} images were read, but the unpatched model saw {len(unpatched)}; "
            "the data has changed since. Measure everything again, without --resume."
        )
    return {
        "images": len(reached.labels),
        "skipped": len(reached.skipped),
        "skipped_files": list(reached.skipped),
        "agreement": 100 * (reached.predicted == unpatched).double().mean().item(),
    }


def label_columns(reached: Predictions, unpatched: Tensor, name: Callable[[Tensor], str]) -> dict[str, Any]:
    """How well the classes are hit, how sure the model is of it, and what the class that loses most loses.

    Args:
        reached: what the model says.
        unpatched: the classes [N] that the unpatched model gives.
        name: what a class is called.
    """
    classes, of = reached.labels.unique(return_inverse=True)
    lost = (unpatched == reached.labels).double() - reached.right.double()  # 1, 0 or -1 for an image
    drops = 100 * torch.zeros(len(classes), dtype=torch.double).index_add_(0, of, lost) / of.bincount()
    worst = int(drops.argmax())
    return {
        "top1": reached.top1,
        "top5": reached.top5,
        "ece": calibration_error(reached.confidence, reached.right),
        "worst_class": name(classes[worst]) if drops[worst] > 0 else None,
        "worst_class_drop": drops[worst].item(),
        "right": pack_bits(reached.right),
    }


def speed_columns(pairs: Comparison, batch: int, *, is_reference: bool, things: str = "images") -> dict[str, float]:
    """The unpatched model against itself is 1 by definition; its quartiles show the noise."""
    low, high = pairs.quartiles
    return {
        "speedup": 1.0 if is_reference else pairs.ratio,
        "speedup_low": low,
        "speedup_high": high,
        f"{things}_per_second": batch / pairs.other.median,
        f"{things}_per_second_unpatched": batch / pairs.base.median,
        **{f"latency_p{p}_ms": 1e3 * pairs.other.quantile(p / 100) for p in PERCENTILES},
        **{f"latency_p{p}_ms_unpatched": 1e3 * pairs.base.quantile(p / 100) for p in PERCENTILES},
    }


def cost_of(
    method: Method, shape: ModelShape, model: nn.Module, run: Callable[[], object], tower: TowerName = "vision"
) -> Cost:
    """Cost of the schedule; for a method that decides for every image, of the tokens that the timed batch had."""
    if not method.adaptive:
        return method.cost(shape)
    with patch(model, method, tower=tower, trace=True, verify=False) as handle, torch.inference_mode():
        run()
        tokens = tuple(handle.trace.tokens_per_layer)
    return method.cost(shape, Schedule(dict.fromkeys(method.tracks, tokens)))
