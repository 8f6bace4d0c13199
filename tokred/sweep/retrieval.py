"""Points of CLIP models: captions found for pictures, pictures for captions, classes named, all over MACs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from tokred.adapters import find_tower
from tokred.bench.explain import ideal_speedup
from tokred.bench.memory import memory_measure, peak_memory
from tokred.bench.timing import compare
from tokred.clip_assets import load_clip
from tokred.cost import Cost, cost
from tokred.data import (
    Batches,
    CaptionedImages,
    Transform,
    caption_names,
    load_captions,
    load_dataset,
    transform_for,
)
from tokred.errors import DataError, TokredError
from tokred.evaluate.retrieval import Captions, Recall, embed_batches, embed_texts, recall
from tokred.evaluate.zero_shot import class_cosines, class_features
from tokred.patching import patch
from tokred.sweep.measure import cost_of, label_columns, outlook_of, speed_columns
from tokred.sweep.point import Point, Settings, TowerName
from tokred.sweep.predictions import Predictions

_SYNSET, _IMAGENET = re.compile(r"n\d{8}"), 1000  # what its folders are called, and how many there are
_SHARE_OF_TIMING = 0.3  # of a point's progress


@dataclass(frozen=True, eq=False)
class Seen:
    """Features of pictures.

    Attributes:
        captioned: of those with captions [N, D], and their rows among the captions [N].
        labelled: of those with labels [M, D], and the labels [M].
        skipped: files that cannot be read.
    """

    captioned: tuple[Tensor, Tensor] | None
    labelled: tuple[Tensor, Tensor] | None
    skipped: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Texts:
    """Features of texts: of all different captions [T, D], and of the classes' descriptions [C, D]."""

    captions: Tensor | None
    classes: Tensor | None


@dataclass(frozen=True, eq=False)
class Findings:
    """What a model finds among the captions, and the classes that it gives to labelled pictures; one may be missing."""

    recall: Recall | None
    named: Predictions | None
    skipped: tuple[str, ...]

    @property
    def choices(self) -> Tensor:
        """The caption that comes first for every picture, then the class of every labelled one."""
        first = [] if self.recall is None else [self.recall.first[0]]
        return torch.cat(first if self.named is None else [*first, self.named.predicted])


class RetrievalSubject:
    """One CLIP model with pictures that have captions, or labels, or both. One of its towers is patched."""

    def __init__(
        self, model: Any, tokenizer: Any, captioned: Batches | None, labelled: Batches | None, settings: Settings
    ) -> None:
        self.device, self.dtype = torch.device(settings.device), getattr(torch, settings.dtype)
        self.model = model.to(self.device, self.dtype).eval()
        self.tokenizer, self.captioned, self.labelled = tokenizer, captioned, labelled
        self.batch_size = settings.batch_size
        self._memory: dict[TowerName, int] = {}

    @classmethod
    def load(cls, model: str, data: str, settings: Settings, workers: int = 0) -> RetrievalSubject:
        """Load a model and the pictures that a sweep asks for, as many with captions as with labels.

        Raises:
            DataError: one of them cannot be had.
        """
        network, tokenizer = load_clip(model)
        transform, name = transform_for(network), network.pretrained_cfg["zero_shot"]

        def some(pictures: Any) -> Batches:
            order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(settings.seed))
            few = sorted(order[: settings.images].tolist())
            part = pictures.part(few) if isinstance(pictures, CaptionedImages) else Subset(pictures, few)
            return Batches(part, settings.batch_size, workers=workers)

        found = load_pictures(data, settings.split, transform)
        if not isinstance(found, CaptionedImages):
            return cls(network, tokenizer, None, some(found), settings)
        labelled = None if name is None else some(load_dataset(name, settings.split, transform))
        return cls(network, tokenizer, some(found), labelled, settings)

    @cached_property
    def captions(self) -> Captions:
        """All different captions."""
        assert self.captioned is not None
        return Captions(self.captioned.dataset.captions)  # type: ignore[attr-defined]

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """What the labels are called in texts."""
        assert self.labelled is not None
        return _names(self.labelled.dataset.dataset)  # type: ignore[attr-defined]

    @cached_property
    def seen(self) -> Seen:
        """The pictures, as the unpatched model sees them."""
        return self.see(self.model)

    @cached_property
    def texts(self) -> Texts:
        """The texts, as the unpatched model reads them."""
        return self.read(self.model)

    @cached_property
    def reference(self) -> Findings:
        """What the unpatched model finds."""
        return self.compare(self.seen, self.texts)

    @cached_property
    def classes(self) -> Tensor:
        """The choices of the unpatched model; may be set from an earlier run."""
        return self.reference.choices

    @cached_property
    def first(self) -> Tensor:
        """The first batch of pictures, which all timings use."""
        for images, _ in self.captioned or self.labelled or ():
            return images.to(self.device, self.dtype)
        raise DataError("There are no pictures that can be read.")

    @cached_property
    def words(self) -> Tensor:
        """The first batch of texts, which timings of the text tower use."""
        if self.captioned is not None:
            texts = self.captions.texts
        else:
            texts = [t.format(name) for name in self.class_names for t in self.model.pretrained_cfg["templates"]]
        return self.tokenizer(list(texts[: self.batch_size])).to(self.device)

    def batch(self, tower: TowerName) -> Tensor:
        """What a tower is timed with."""
        return self.words if tower == "text" else self.first

    def encode(self, tower: TowerName, model: Any) -> Tensor:
        """Features of that batch."""
        return model.encode_text(self.words) if tower == "text" else model.encode_image(self.first)

    def memory(self, tower: TowerName) -> int:
        """Bytes that encoding it needs in the unpatched model."""
        if tower not in self._memory:
            self._memory[tower] = peak_memory(lambda: self.encode(tower, self.model), self.device)
        return self._memory[tower]

    def find(self, tower: TowerName, model: Any, report: Callable[[float], None] = lambda share: None) -> Findings:
        """What a model finds that has a method in that tower; the other one is as it was."""
        if tower == "text":
            return self.compare(self.seen, self.read(model))
        return self.compare(self.see(model, report), self.texts)

    def see(self, model: Any, report: Callable[[float], None] = lambda share: None) -> Seen:
        """Embed all pictures."""
        both = [batches for batches in (self.captioned, self.labelled) if batches is not None]
        total, done = sum(map(len, both)), 0
        found: list[tuple[Tensor, Tensor]] = []
        for batches in both:
            found.append(embed_batches(model, batches, lambda now, before=done: report((before + now) / total)))
            done += len(batches)
        skipped = tuple(str(file) for batches in both for file in batches.skipped)
        return Seen(None if self.captioned is None else found[0], None if self.labelled is None else found[-1], skipped)

    def read(self, model: Any) -> Texts:
        """Embed all texts."""
        captions = classes = None
        if self.captioned is not None:
            captions = embed_texts(model, self.tokenizer, self.captions.texts, self.batch_size)
        if self.labelled is not None:
            templates = self.model.pretrained_cfg["templates"]
            classes = class_features(model, self.tokenizer, self.class_names, templates)
        return Texts(captions, classes)

    def compare(self, seen: Seen, texts: Texts) -> Findings:
        """Look for the captions and the classes of pictures."""
        found = named = None
        if seen.captioned is not None and texts.captions is not None:
            features, rows = seen.captioned
            right = self.captions.right[rows]
            there = right.any(0)  # captions of pictures that can be read
            found = recall(features, texts.captions[there], right[:, there])
        if seen.labelled is not None and texts.classes is not None:
            features, labels = seen.labelled
            logits = self.model.logit_scale.exp().cpu() * class_cosines(features, texts.classes)
            named = Predictions.of(logits, labels)
        return Findings(found, named, seen.skipped)


def measure_retrieval(
    point: Point, subject: RetrievalSubject, report: Callable[[float], None] = lambda share: None
) -> dict[str, Any]:
    """Everything that is measured about a point of a CLIP model, as columns of the results.

    Agreement counts pictures with captions and pictures with labels: those whose first caption, or class, is that of
    the unpatched model. Cost and speed are those of the tower that the point is about.

    Args:
        point: what to measure.
        subject: its model, pictures and captions; the model is left unpatched.
        report: called with the share that is done.
    """
    method, at = point.build(), point.tower
    unpatched = subject.classes
    patched = copy.deepcopy(subject.model)
    handle = None if method is None else patch(patched, method, tower=at)
    reached = subject.reference if method is None else subject.find(
        at, patched, lambda share: report(share * (1 - _SHARE_OF_TIMING))
    )  # fmt: skip
    plain, other = (partial(subject.encode, at, model) for model in (subject.model, patched))
    with torch.inference_mode():
        pairs = compare(
            plain,
            other,
            rounds=point.settings.rounds,
            device=subject.device,
            report=lambda share: report(1 - _SHARE_OF_TIMING * (1 - share)),
        )
        memory = subject.memory(at) if method is None else peak_memory(other, subject.device)
        memory_unpatched = subject.memory(at)
    if handle is not None:
        handle.remove()
    tower = find_tower(subject.model, at)
    before = cost(tower.shape)
    after = before if method is None else cost_of(method, tower.shape, patched, other, at)
    choices = reached.choices
    if len(choices) != len(unpatched):
        raise DataError(
            f"{len(choices)} choices were made, but the unpatched model made {len(unpatched)}; the data has changed "
            "since. Measure everything again, without --resume."
        )
    return {
        "adapter": tower.family,
        "tower": at,
        "agreement": 100 * (choices == unpatched).double().mean().item(),
        "skipped": len(reached.skipped),
        "skipped_files": list(reached.skipped),
        **_found_columns(reached, unpatched, subject),
        **speed_columns(
            pairs,
            len(subject.batch(at)),
            is_reference=method is None,
            things="texts" if at == "text" else "images",
        ),
        "peak_memory_mb": memory / 1e6,
        "peak_memory_mb_unpatched": memory_unpatched / 1e6,
        "memory_measure": memory_measure(subject.device),
        "gmacs": after.gmacs,
        "gmacs_unpatched": before.gmacs,
        "ideal_speedup": ideal_speedup(before, after),
        "mean_tokens": after.mean_tokens,
        "tokens_per_layer": list(after.tokens_per_layer),
        "predictions": choices.tolist() if method is None else None,
    }


def _found_columns(reached: Findings, unpatched: Tensor, subject: RetrievalSubject) -> dict[str, Any]:
    """Recalls; or what is measured of any classifier, where pictures have labels alone."""
    if reached.recall is not None:
        top1 = None if reached.named is None else reached.named.top1
        return {
            "images": reached.recall.images,
            "texts": reached.recall.texts,
            "top1": top1,
            **reached.recall.columns(),
        }
    assert reached.named is not None
    columns = label_columns(reached.named, unpatched, lambda index: subject.class_names[int(index)])
    return {"images": len(reached.named.labels), **columns}


def load_pictures(data: str, split: str, transform: Transform | None = None) -> CaptionedImages | Dataset[Any]:
    """Pictures with captions (a known name, or a JSONL file) or with labels (anything else).

    Raises:
        DataError: there are no such data.
    """
    if data in caption_names() or Path(data).suffix == ".jsonl":
        return load_captions(data, split, transform)
    try:
        return load_dataset(data, split, transform)
    except DataError as error:
        raise DataError(f"{error} With captions: {', '.join(caption_names())}, or a JSONL file.") from error


def foresee_retrieval(model: str) -> Callable[[Point], Cost | TokredError]:
    """Return what says what a point of a model will cost, or why it will fail."""
    network = load_clip(model, pretrained=False)[0]

    def outlook(point: Point) -> Cost | TokredError:
        try:
            return outlook_of(find_tower(network, point.tower).shape)(point)
        except TokredError as error:
            return error

    return outlook


def _names(labelled: Any) -> tuple[str, ...]:
    """The words for classes; those of ImageNet-1k's folders are open_clip's.

    Raises:
        DataError: nobody knows words for them.
    """
    classes = getattr(labelled, "classes", None)
    if classes is None:
        raise DataError("The data have numbers for classes, but a CLIP needs words. Add classnames.txt, or folders.")
    if not all(_SYNSET.fullmatch(name) for name in classes):
        return classes
    if len(classes) != _IMAGENET:
        raise DataError(f"Words are known for the {_IMAGENET} classes of ImageNet-1k; the data have {len(classes)}.")
    from open_clip import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)
