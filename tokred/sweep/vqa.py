"""Points of multimodal models: questions answered, tokens counted, time by phase."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Subset

from tokred.bench.memory import memory_measure
from tokred.bench.multimodal import DECODED, Phases, time_phases
from tokred.data import VQAExample, load_vqa
from tokred.errors import DataError, UnsupportedModelError
from tokred.evaluate.vqa import exact_match, prompt_of
from tokred.methods import AnyMethod, RandomVisual
from tokred.multimodal_assets import load_multimodal
from tokred.multimodal_cost import prefill_cost
from tokred.patching import patch
from tokred.sweep.point import Point, Settings
from tokred.sweep.predictions import pack_bits

_SHARE_OF_TIMING = 0.5  # of a point's progress


@dataclass(frozen=True)
class Answers:
    """What a model answers, and how many visual tokens it read for it.

    Attributes:
        answers: all of them.
        quality: how good they are, as columns of the results.
        tokens: visual tokens at the entry of the language model, newlines included, mean over questions.
        newlines: newline tokens among them, where they were counted.
    """

    answers: tuple[str, ...]
    quality: dict[str, Any]
    tokens: float
    newlines: float | None


class VQASubject:
    """One multimodal model with one set of questions, ready to run."""

    def __init__(self, model: Any, processor: Any, questions: Any, settings: Settings) -> None:
        self.device, self.dtype = torch.device(settings.device), getattr(torch, settings.dtype)
        self.model = model.to(self.device, self.dtype).eval()
        self.processor = processor
        self.questions = questions
        self.batch_size = settings.batch_size

    @classmethod
    def load(cls, model: str, data: str, settings: Settings, workers: int = 0) -> VQASubject:
        """Load a model and the questions that a sweep asks for.

        Raises:
            DataError: one of them cannot be had.
        """
        network, processor = load_multimodal(model)
        questions: Any = load_vqa(data, settings.split)
        if settings.images is not None and settings.images < len(questions):
            order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(settings.seed))
            questions = Subset(questions, sorted(order[: settings.images].tolist()))
        return cls(network, processor, questions, settings)

    @cached_property
    def reference(self) -> Answers:
        """What the unpatched model answers."""
        return self.answer(self.model, None)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The unpatched answers; may be set from an earlier run."""
        return self.reference.answers

    @cached_property
    def first(self) -> dict[str, Any]:
        """The inputs of the first batch of questions, which all timings use."""
        batch = list(islice(self._examples(), self.batch_size))
        if not batch:
            raise DataError("There are no questions.")
        inputs = self.processor(
            images=[list(example.images) for example in batch],
            text=[prompt_of(self.processor, example) for example in batch],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return dict(inputs.to(self.device, self.dtype))

    def answer(self, model: Any, handle: Any, report: Callable[[float], None] | None = None) -> Answers:
        """Ask a model all questions."""
        tokens: list[float] = []
        newlines: list[float] = []

        def count(asked: int) -> None:
            if handle is not None:
                trace = handle.trace
                tokens.extend(sum(len(image.anchor) for image in prompt) for prompt in trace.prompts)
                newlines.extend(sum(image.newlines for image in prompt) for prompt in trace.visual_tokens_of_prompts)
            if report is not None:
                report(asked / len(self.questions))

        result = exact_match(model, self.processor, self._examples(), self.batch_size, report=count)
        prompts = max(len(tokens), 1)
        quality = {"exact_match": result.percent, "right": pack_bits(result.right)}
        return Answers(result.answers, quality, sum(tokens) / prompts, sum(newlines) / prompts)

    def counts(self) -> Answers:
        """The same for the unpatched model, whose tokens are counted by a patch that keeps them all."""
        patched = copy.deepcopy(self.model)
        with patch(patched, RandomVisual(keep=1.0)) as handle:
            return self.answer(patched, handle)

    @cached_property
    def every_token(self) -> list[list[int]]:
        """Visual tokens that each layer of the unpatched model sees, for every prompt of the first batch."""
        with torch.inference_mode(), patch(copy.deepcopy(self.model), RandomVisual(keep=1.0)) as handle:
            handle.model(**self.first)
            return handle.trace.tokens_per_layer

    def _examples(self) -> Iterator[VQAExample]:
        return (self.questions[index] for index in range(len(self.questions)))


def measure_vqa(
    point: Point, subject: VQASubject, report: Callable[[float], None] = lambda share: None
) -> dict[str, Any]:
    """Everything that is measured about a point of a multimodal model, as columns of the results.

    Args:
        point: what to measure.
        subject: its model and questions; the model is left unpatched.
        report: called with the share that is done.
    """
    method = point.build()
    unpatched = subject.classes
    patched = copy.deepcopy(subject.model)
    handle = None if method is None else _put_in(patched, method)
    reached = (
        subject.counts()
        if handle is None
        else subject.answer(patched, handle, lambda s: report(s * (1 - _SHARE_OF_TIMING)))
    )
    if len(reached.answers) != len(unpatched):
        raise DataError(
            f"{len(reached.answers)} questions were asked, but the unpatched model was asked {len(unpatched)}; the "
            "data has changed since. Measure everything again, without --resume."
        )
    phases = time_phases(
        subject.model, patched, handle, subject.first, rounds=point.settings.rounds, device=subject.device,
        report=lambda share: report(1 - _SHARE_OF_TIMING * (1 - share)),
    )  # fmt: skip
    agree = sum(a == b for a, b in zip(reached.answers, unpatched, strict=True))
    return {
        "adapter": "transformers",
        "images": len(reached.answers),
        "skipped": 0,
        **reached.quality,
        "agreement": 100 * agree / max(len(unpatched), 1),
        "visual_tokens": reached.tokens,
        "newline_tokens": reached.newlines,
        **_time_columns(phases, len(subject.first["input_ids"]), is_reference=method is None),
        **_cost_columns(subject, patched, handle),
        "memory_measure": memory_measure(subject.device),
        "answers": list(reached.answers) if method is None else None,
    }


def _put_in(model: Any, method: AnyMethod) -> Any:
    """Patch a model; where a method acts inside the encoder, visual tokens are counted by one that keeps them all."""
    counting = (RandomVisual(keep=1.0),) if method.place == "encoder" else ()
    return patch(model, method, *counting)


def _time_columns(phases: Phases, batch: int, *, is_reference: bool) -> dict[str, Any]:
    """The unpatched model against itself is 1 by definition; its quartiles show the noise."""
    low, high = phases.prefill.quartiles

    def words_per_second(which: str) -> float:
        spent = (getattr(phase, which).median for phase in (phases.vision, phases.prefill, phases.decode))
        return batch * DECODED / sum(spent)

    return {
        "vision_ms": 1e3 * phases.vision.other.median,
        "vision_ms_unpatched": 1e3 * phases.vision.base.median,
        "reduction_ms": 1e3 * phases.reduction,
        "prefill_ms": 1e3 * phases.prefill.other.median,
        "prefill_ms_unpatched": 1e3 * phases.prefill.base.median,
        "prefill_speedup": 1.0 if is_reference else phases.prefill.ratio,
        "prefill_speedup_low": low,
        "prefill_speedup_high": high,
        "decode_ms": 1e3 * phases.decode.other.median / DECODED,
        "decode_ms_unpatched": 1e3 * phases.decode.base.median / DECODED,
        "decode_speedup": 1.0 if is_reference else phases.decode.ratio,
        "tokens_per_second": words_per_second("other"),
        "tokens_per_second_unpatched": words_per_second("base"),
        "kv_cache_mb": phases.cache_bytes[1] / 1e6,
        "kv_cache_mb_unpatched": phases.cache_bytes[0] / 1e6,
        "peak_memory_mb": phases.peak_bytes[1] / 1e6,
        "peak_memory_mb_unpatched": phases.peak_bytes[0] / 1e6,
    }


def _cost_columns(subject: VQASubject, patched: Any, handle: Any) -> dict[str, Any]:
    """GMACs of the language model's prefill for the timed batch, and their ratio."""
    seen = every = subject.every_token
    if handle is not None:
        with torch.inference_mode():
            patched(**subject.first)
        seen = handle.trace.tokens_per_layer
    real = subject.first["attention_mask"].sum(dim=1).tolist()
    text = [n - row[0] for n, row in zip(real, every, strict=True)]
    try:
        before = sum(prefill_cost(subject.model, t, row) for t, row in zip(text, every, strict=True)) / len(text)
        after = sum(prefill_cost(subject.model, t, row) for t, row in zip(text, seen, strict=True)) / len(text)
    except UnsupportedModelError as error:
        return {"note": str(error)}
    return {
        "gmacs": after / 1e9,
        "gmacs_unpatched": before / 1e9,
        "ideal_speedup": before / after,
        "mean_tokens": sum(map(sum, seen)) / max(sum(map(len, seen)), 1),
        "tokens_per_layer": [round(sum(column) / len(seen)) for column in zip(*seen, strict=True)],
    }
