"""What a schedule reaches: quality on the images of the search, and cost."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from tokred.bench.explain import ideal_speedup
from tokred.bench.timing import compare
from tokred.cost import Cost, cost
from tokred.errors import ConfigError
from tokred.learn.spec import SearchSpec
from tokred.patching import patch
from tokred.schedule import Schedule
from tokred.sweep.measure import cost_of, quality_columns, speed_columns
from tokred.sweep.subject import Subject

_SHARE_OF_TIMING = 0.4  # of a trial's progress, where time is measured


class Objective:
    """Measures schedules of one method on one model; the model is left unpatched.

    Args:
        subject: the model and its images.
        spec: what counts.

    Raises:
        ConfigError: top-1 is asked for, but the labels are not the model's classes.
    """

    def __init__(self, subject: Subject, spec: SearchSpec) -> None:
        if subject.note is not None and spec.quality == "top1":
            raise ConfigError(f"{subject.note}. Search with the quality 'agreement', which needs no labels.")
        self.subject, self.spec, self.method = subject, spec, spec.build()
        self._patched = copy.deepcopy(subject.model)

    def unpatched(self) -> dict[str, Any]:
        """The columns of the unpatched model."""
        reached = self.subject.reference
        before = cost(self.subject.tower.shape)
        top1 = None if self.subject.note else reached.top1
        speed = {"speedup": 1.0} if self.spec.cost == "latency" else {}
        return {**quality_columns(reached, reached.predicted), "top1": top1, **speed, **_cost_columns(before, before)}

    def __call__(self, schedule: Schedule, report: Callable[[float], None] = lambda share: None) -> dict[str, Any]:
        """Patch the schedule in, run all images, and time it if the search is about time.

        Args:
            schedule: what to measure.
            report: called with the share that is done.

        Returns:
            Columns as in the results of a sweep.
        """
        subject, method, model = self.subject, self.method.with_(schedule=schedule), self._patched
        timed = self.spec.cost == "latency"
        first = 1 - _SHARE_OF_TIMING if timed else 1.0
        unpatched, speed = subject.classes, {}
        with patch(model, method):
            reached = subject.predict(model, lambda share: report(share * first))
            if timed:
                with torch.inference_mode():
                    pairs = compare(
                        lambda: subject.model(subject.first),
                        lambda: model(subject.first),
                        rounds=self.spec.rounds,
                        device=subject.device,
                        report=lambda share: report(first + (1 - first) * share),
                    )
                speed = speed_columns(pairs, len(subject.first), is_reference=False)
        after = cost_of(method, subject.tower.shape, model, lambda: model(subject.first))
        return {
            **quality_columns(reached, unpatched),
            "top1": None if subject.note else reached.top1,
            **speed,
            **_cost_columns(cost(subject.tower.shape), after),
        }


def _cost_columns(before: Cost, after: Cost) -> dict[str, Any]:
    return {
        "gmacs": after.gmacs,
        "gmacs_unpatched": before.gmacs,
        "ideal_speedup": ideal_speedup(before, after),
        "mean_tokens": after.mean_tokens,
        "tokens_per_layer": list(after.tokens_per_layer),
    }
