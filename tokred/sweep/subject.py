"""What the points of a sweep share: one model, its images, and what it says about them unpatched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from tokred.adapters import Tower, find_tower
from tokred.assets import load_model
from tokred.bench.memory import peak_memory
from tokred.data import Batches, Unreadable, load_dataset, transform_for
from tokred.errors import DataError, NonFiniteError
from tokred.evaluate.penultimate import Penultimate
from tokred.evaluate.probe import LinearProbe
from tokred.patching import unwrap
from tokred.sweep.point import Settings
from tokred.sweep.predictions import Predictions

LEARNING = {"knn", "probe"}  # metrics that look at training images
FEATURES = LEARNING | {"cosine"}  # and at features


class Subject:
    """One model with one data set, ready to run."""

    def __init__(
        self, model: nn.Module, batches: Batches, settings: Settings, learned_from: Batches | None = None
    ) -> None:
        self.device, self.dtype = torch.device(settings.device), getattr(torch, settings.dtype)
        self.model = model.to(self.device, self.dtype).eval()
        self.batches, self._learned_from = batches, learned_from
        self._keeps_features = not FEATURES.isdisjoint(settings.metrics)
        self.note = _class_note(model, batches.dataset)

    @classmethod
    def load(cls, model: str, data: str, settings: Settings, workers: int = 0) -> Subject:
        """Load a model and the images that a sweep asks for.

        Raises:
            DataError: one of them cannot be had, or there are no images.
        """
        network = load_model(model)
        transform = transform_for(network)

        def some(images: Any, most: int | None) -> Batches:
            if len(images) == 0:
                raise DataError(f"{data} holds no images.")
            if most is not None and most < len(images):
                order = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed))
                images = Subset(images, sorted(order[:most].tolist()))
            return Batches(images, settings.batch_size, workers=workers)

        learned_from = None
        if not LEARNING.isdisjoint(settings.metrics):
            learned_from = some(load_dataset(data, "train", transform, strict=True), settings.train_images)
        images = some(load_dataset(data, settings.split, transform), settings.images)
        return cls(network, images, settings, learned_from)

    @cached_property
    def tower(self) -> Tower:
        """What is patched."""
        return find_tower(unwrap(self.model))

    @cached_property
    def reference(self) -> Predictions:
        """What the unpatched model says."""
        return self.predict(self.model)

    @cached_property
    def classes(self) -> Tensor:
        """The classes that the unpatched model gives to the readable images; may be set from an earlier run."""
        return self.reference.predicted

    @cached_property
    def learned(self) -> Predictions:
        """What the unpatched model says about the training images, with features."""
        assert self._learned_from is not None
        return self.join([self._run(self.model, self._learned_from)])

    @cached_property
    def probe(self) -> LinearProbe:
        """Classes read from the features that the unpatched model gives to the training images."""
        assert self.learned.features is not None
        return LinearProbe(self.learned.features, self.learned.labels)

    @cached_property
    def first(self) -> Tensor:
        """The first batch of readable images, which all timings use."""
        for images, _ in self.batches:
            return images.to(self.device, self.dtype)
        raise DataError(f"None of the images can be read; the first: {self.batches.skipped[0]}.")

    @cached_property
    def _readable(self) -> Sequence[int]:
        """Places of the readable images in the data set."""
        data = self.batches.dataset
        places = range(len(data))  # type: ignore[arg-type]
        return [at for at in places if not isinstance(data[at], Unreadable)] if self.batches.skipped else places

    def image(self, position: int) -> Tensor:
        """The readable image [C, H, W] of that position among the predictions."""
        return self.batches.dataset[self._readable[position]][0]

    def class_name(self, index: Tensor) -> str:
        """What the data set calls a class."""
        data = self.batches.dataset
        names = getattr(data.dataset if isinstance(data, Subset) else data, "classes", None)
        return str(int(index)) if names is None else str(names[int(index)])

    @cached_property
    def memory(self) -> int:
        """Bytes that a forward of the unpatched model needs."""
        with torch.inference_mode():
            return peak_memory(lambda: self.model(self.first), self.device)

    def predict(self, model: nn.Module, report: Callable[[float], None] | None = None) -> Predictions:
        """Run a model over all images.

        Raises:
            NonFiniteError: its logits are not numbers.
            DataError: no image can be read.
        """
        return self.join([self.predict_part(model, 0, 1, report)])

    def predict_part(
        self, model: nn.Module, shard: int, shards: int, report: Callable[[float], None] | None = None
    ) -> Predictions:
        """Run a model over one of ``shards`` parts of the images.

        Parts end where batches end: every image is in the same batch, whatever the number of parts, and gets the same
        class to the last bit.

        Raises:
            NonFiniteError: its logits are not numbers.
        """
        first, end = (at * len(self.batches) // shards for at in (shard, shard + 1))
        batches = self.batches if shards == 1 else self.batches.part(first, end)
        return self._run(model, batches, first, report)

    def _run(
        self, model: nn.Module, batches: Batches, first: int = 0, report: Callable[[float], None] | None = None
    ) -> Predictions:
        found = []
        with Penultimate(model) if self._keeps_features else nullcontext() as features, torch.inference_mode():
            for index, (images, labels) in enumerate(batches):
                logits = model(images.to(self.device, self.dtype))
                if not torch.isfinite(logits).all():
                    raise NonFiniteError(f"The logits of batch {first + index} are not finite. Try dtype: float32.")
                found.append(Predictions.of(logits, labels, features and features.take()))
                if report is not None:
                    report((index + 1) / len(batches))
        return replace(Predictions.join(found), skipped=tuple(str(file) for file in batches.skipped))

    def join(self, parts: Sequence[Predictions]) -> Predictions:
        """What the parts say together.

        Raises:
            DataError: no image can be read.
        """
        whole = Predictions.join(parts)
        if not len(whole.predicted):
            raise DataError(f"None of the images can be read; the first: {whole.skipped[0]}.")
        return whole


def _class_note(model: nn.Module, dataset: Any) -> str | None:
    """Why top-1 would mean nothing, if the labels are not the model's classes."""
    dataset = dataset.dataset if isinstance(dataset, Subset) else dataset
    classes, outputs = getattr(dataset, "classes", None), getattr(model, "num_classes", None)
    if outputs == 0:
        return "top-1 and agreement left out: the model has no classes"
    if classes is None or not isinstance(outputs, int) or len(classes) == outputs:
        return None
    return f"top-1 left out: the data has {len(classes)} classes, the model {outputs}"
