"""Points of CLIP models: captions found for pictures, pictures for captions, classes named, all over MACs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokred.adapters import Tower, find_tower
from tokred.bench.explain import ideal_speedup
from tokred.bench.memory import memory_measure, peak_memory
from tokred.bench.timing import compare
from tokred.clip_assets import load_clip
from tokred.cost import Cost, cost
from tokred.data import CaptionedImages, TensorImages, load_captions, load_dataset
from tokred.data.tensors import Normalize
from tokred.errors import DataError, TokredError
from tokred.evaluate.retrieval import Captions, Recall, embed_images, embed_texts, recall
from tokred.evaluate.zero_shot import class_cosines, class_features
from tokred.patching import patch
from tokred.sweep.measure import cost_of, outlook_of, speed_columns
from tokred.sweep.point import Point, Settings
from tokred.sweep.predictions import Predictions

_SHARE_OF_TIMING = 0.3  # of a point's progress


@dataclass(frozen=True, eq=False)
class Findings:
    """What a model finds among the captions, and the classes that it gives to labelled pictures, if there are any."""

    recall: Recall
    named: Predictions | None

    @property
    def choices(self) -> Tensor:
        """The caption that comes first for every picture, then the class of every labelled one."""
        first = self.recall.first[0]
        return first if self.named is None else torch.cat([first, self.named.predicted])


class RetrievalSubject:
    """One CLIP model with pictures and captions, ready to run. The image tower is what is patched."""

    def __init__(
        self, model: Any, tokenizer: Any, data: CaptionedImages, labelled: TensorImages | None, settings: Settings
    ) -> None:
        self.device, self.dtype = torch.device(settings.device), getattr(torch, settings.dtype)
        self.model = model.to(self.device, self.dtype).eval()
        self.tokenizer, self.data, self.labelled = tokenizer, data, labelled
        self.batch_size = settings.batch_size
        self.transform = Normalize(model.pretrained_cfg["mean"], model.pretrained_cfg["std"])

    @classmethod
    def load(cls, model: str, data: str, settings: Settings, workers: int = 0) -> RetrievalSubject:
        """Load a model and the pictures that a sweep asks for, as many with captions as with labels.

        Raises:
            DataError: one of them cannot be had.
        """
        network, tokenizer = load_clip(model)
        captioned, name = load_captions(data, settings.split), network.pretrained_cfg["zero_shot"]
        labelled: Any = None if name is None else load_dataset(name, settings.split)
        if settings.images is not None:
            captioned = captioned.part(_some(len(captioned), settings))
            if labelled is not None:
                few = _some(len(labelled), settings)
                labelled = TensorImages(labelled.images[few], labelled.labels[few], labelled.classes)
        return cls(network, tokenizer, captioned, labelled, settings)

    @cached_property
    def tower(self) -> Tower:
        """What is patched."""
        return find_tower(self.model)

    @cached_property
    def captions(self) -> Captions:
        """All different captions."""
        return Captions(self.data.captions)

    @cached_property
    def texts(self) -> Tensor:
        """Their features [T, D]; the text tower is not patched."""
        return embed_texts(self.model, self.tokenizer, self.captions.texts, self.batch_size)

    @cached_property
    def classes_of_texts(self) -> Tensor:
        """Features of the classes' descriptions [C, D]."""
        assert self.labelled is not None
        templates = self.model.pretrained_cfg["templates"]
        return class_features(self.model, self.tokenizer, self.labelled.classes, templates)

    @cached_property
    def reference(self) -> Findings:
        """What the unpatched model finds."""
        return self.find(self.model)

    @cached_property
    def classes(self) -> Tensor:
        """The choices of the unpatched model; may be set from an earlier run."""
        return self.reference.choices

    @cached_property
    def first(self) -> Tensor:
        """The first batch of pictures, which all timings use."""
        return self.transform(self.data.images[: self.batch_size]).to(self.device, self.dtype)

    @cached_property
    def memory(self) -> int:
        """Bytes that encoding the first batch needs."""
        with torch.inference_mode():
            return peak_memory(lambda: self.model.encode_image(self.first), self.device)

    def find(self, model: Any, report: Callable[[float], None] = lambda share: None) -> Findings:
        """Embed all pictures by a model and look for captions and classes."""
        part = 1.0 if self.labelled is None else 0.5
        seen = embed_images(model, self.data.images, self.transform, self.batch_size, report=lambda s: report(part * s))
        found = recall(seen, self.texts, self.captions.right)
        if self.labelled is None:
            return Findings(found, None)
        labelled = embed_images(
            model, self.labelled.images, self.transform, self.batch_size, report=lambda s: report(part * (1 + s))
        )
        logits = model.logit_scale.exp().cpu() * class_cosines(labelled, self.classes_of_texts)
        return Findings(found, Predictions.of(logits, self.labelled.labels))


def measure_retrieval(
    point: Point, subject: RetrievalSubject, report: Callable[[float], None] = lambda share: None
) -> dict[str, Any]:
    """Everything that is measured about a point of a CLIP model, as columns of the results.

    Agreement counts pictures with captions and pictures with labels: those whose first caption, or class, is that of
    the unpatched model. Cost and speed are those of the image tower.

    Args:
        point: what to measure.
        subject: its model, pictures and captions; the model is left unpatched.
        report: called with the share that is done.
    """
    method = point.build()
    unpatched = subject.classes
    plain, images = subject.model, subject.first
    patched = copy.deepcopy(plain)
    handle = None if method is None else patch(patched, method)
    reached = subject.reference if method is None else subject.find(
        patched, lambda share: report(share * (1 - _SHARE_OF_TIMING))
    )  # fmt: skip
    with torch.inference_mode():
        pairs = compare(
            lambda: plain.encode_image(images),
            lambda: patched.encode_image(images),
            rounds=point.settings.rounds,
            device=subject.device,
            report=lambda share: report(1 - _SHARE_OF_TIMING * (1 - share)),
        )
        memory = subject.memory if method is None else peak_memory(lambda: patched.encode_image(images), subject.device)
    if handle is not None:
        handle.remove()
    before = cost(subject.tower.shape)
    after = before if method is None else cost_of(method, subject.tower.shape, patched, images)
    choices = reached.choices
    if len(choices) != len(unpatched):
        raise DataError(
            f"{len(choices)} choices were made, but the unpatched model made {len(unpatched)}; the data has changed "
            "since. Measure everything again, without --resume."
        )
    return {
        "adapter": subject.tower.family,
        "images": reached.recall.images,
        "agreement": 100 * (choices == unpatched).double().mean().item(),
        "skipped": 0,
        "skipped_files": [],
        "texts": reached.recall.texts,
        **reached.recall.columns(),
        "top1": None if reached.named is None else reached.named.top1,
        **speed_columns(pairs, len(images), is_reference=method is None),
        "peak_memory_mb": memory / 1e6,
        "peak_memory_mb_unpatched": subject.memory / 1e6,
        "memory_measure": memory_measure(subject.device),
        "gmacs": after.gmacs,
        "gmacs_unpatched": before.gmacs,
        "ideal_speedup": ideal_speedup(before, after),
        "mean_tokens": after.mean_tokens,
        "tokens_per_layer": list(after.tokens_per_layer),
        "predictions": choices.tolist() if method is None else None,
    }


def foresee_retrieval(model: str) -> Callable[[Point], Cost | TokredError]:
    """Return what says what a point of a model will cost, or why it will fail."""
    return outlook_of(find_tower(load_clip(model)[0]).shape)


def _some(total: int, settings: Settings) -> list[int]:
    """Places of as many pictures as the sweep asks for, drawn with its seed."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(settings.seed))
    return sorted(order[: settings.images].tolist())
