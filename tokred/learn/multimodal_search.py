"""Search for knobs of a method between the layers of a language model: right answers against prefill MACs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from tokred.adapters.multimodal import find_multimodal
from tokred.bench.machine import threads
from tokred.data import VQADataset, load_vqa
from tokred.errors import DataError
from tokred.evaluate.vqa import ExactMatch, exact_match
from tokred.learn.choice import Knobs
from tokred.learn.journal import Seed
from tokred.learn.multimodal_spec import MultimodalSpec
from tokred.learn.questions import ask, draw, prompt_sizes
from tokred.learn.quiet import quiet, quiet_loading
from tokred.learn.rates import RateSpace, law_at, make_rate_space
from tokred.learn.search import Outcome, Progress, check_request, explore
from tokred.methods import create_method
from tokred.multimodal_assets import load_multimodal
from tokred.multimodal_cost import prefill_cost
from tokred.patching import patch

_SEEDS = 5  # budgets at which the sigmoid with its default steepness is tried first


class Answers:
    """Measures knobs of one method on one model; the model is left unpatched.

    Args:
        model: a multimodal model.
        processor: its processor.
        data: questions.
        spec: what counts.
    """

    def __init__(self, model: Any, processor: Any, data: VQADataset, spec: MultimodalSpec) -> None:
        if len(data) == 0:
            raise DataError(f"{spec.data} holds no questions.")
        self.model, self.processor, self.data, self.spec = model, processor, data, spec
        self.depth = len(find_multimodal(model).layers)
        self.sizes = prompt_sizes(model, processor, data, spec.batch_size)
        self._cost = lru_cache(maxsize=None)(lambda text, visual: prefill_cost(model, text, visual))

    @property
    def visual_tokens(self) -> float:
        """Of a prompt, on average."""
        return sum(size.visual for size in self.sizes) / len(self.sizes)

    @cached_property
    def reference(self) -> ExactMatch:
        """What the unpatched model answers."""
        return exact_match(self.model, self.processor, self.data, self.spec.batch_size)

    def unpatched(self) -> dict[str, Any]:
        """The columns of the unpatched model."""
        return self._columns(self.reference, self.reference, [(size.visual,) * self.depth for size in self.sizes])

    def __call__(self, schedule: Knobs, report: Callable[[float], None] = lambda share: None) -> dict[str, Any]:
        """Patch the method in and ask all questions.

        Args:
            schedule: the knobs to measure.
            report: called with the share that is done.

        Returns:
            Columns as in the results of a sweep: ``gmacs`` are those of the language model, tokens the visual ones.
        """
        unpatched = self.reference  # now, before the model is patched
        with patch(self.model, create_method(self.spec.method, **schedule.values)) as handle:
            reached = ask(handle, self.processor, self.data, self.spec.batch_size, report)
        return self._columns(reached.answers, unpatched, reached.visual_tokens)

    def _columns(self, answers: ExactMatch, unpatched: ExactMatch, visual: Any) -> dict[str, Any]:
        same = sum(a == b for a, b in zip(answers.answers, unpatched.answers, strict=True))
        per_layer = [sum(column) / len(column) for column in zip(*visual, strict=True)]
        macs = [self._cost(size.text, tuple(row)) for size, row in zip(self.sizes, visual, strict=True)]
        return {
            "images": answers.total,
            "exact_match": answers.percent,
            "agreement": 100 * same / answers.total,
            "gmacs": sum(macs) / len(macs) / 1e9,
            "mean_tokens": sum(per_layer) / len(per_layer),
            "tokens_per_layer": [round(count) for count in per_layer],
        }


def run_multimodal_search(
    spec: MultimodalSpec,
    folder: str | Path,
    *,
    trials: int = 100,
    sampler: str = "nsga2",
    report: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Search until ``trials`` settings have been tried in ``folder``, by this process and by others that share it.

    The first ones are P-Sigmoid with its default steepness at several budgets. All else is as in
    :func:`tokred.learn.run_search`; the files of the front hold the knobs.

    Args:
        spec: what to search for.
        folder: of the search; a process that names the same one joins, or resumes.
        trials: how many settings in all.
        sampler: "nsga2", "tpe" or "random".
        report: told how it goes.

    Raises:
        BudgetError: a budget cannot be read, or is above the visual tokens that there are.
        ConfigError: the folder holds another search, or a setting is unknown.
        DataError: there is no such model or data, or a question has no image.
        StorageError: the folder cannot be written, or a running process does not release its lock.
        TokredError: Optuna is not installed.
    """
    check_request(trials, sampler, spec.device)
    with threads(spec.threads), quiet():
        data = draw(load_vqa(spec.data, spec.split), spec.questions, spec.seed)
        with quiet_loading():
            model, processor = load_multimodal(spec.model)
        model.to(torch.device(spec.device), getattr(torch, spec.dtype))
        objective = Answers(model, processor, data, spec)
        space = make_rate_space(spec.space, objective.depth, spec.budget_low, spec.budget_high, objective.visual_tokens)
        return explore(spec, folder, space, objective, seeds_of(space), trials=trials, sampler=sampler, report=report)


def seeds_of(space: RateSpace) -> list[Seed]:
    """The sigmoid with its default steepness, at budgets from the lowest to the highest."""
    budgets = dict.fromkeys(space.low + (space.high - space.low) * i / (_SEEDS - 1) for i in range(_SEEDS))
    return [
        Seed(f"own law at {100 * b:.4g}%", knobs := law_at(b), space.numbers(b, knobs.values["steepness"]))
        for b in budgets
    ]
