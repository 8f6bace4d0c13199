"""Methods inside multimodal models: putting them in, taking them out, and what they did."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import torch
from torch import nn

from tokred.adapters.multimodal import find_multimodal, forget
from tokred.adapters.multimodal_features import FeatureReduction
from tokred.adapters.multimodal_language import LanguageReduction
from tokred.adapters.multimodal_passage import Passage
from tokred.errors import AlreadyPatchedError
from tokred.handle import WayOut
from tokred.methods.decoder import DecoderMethod
from tokred.methods.features import FeatureMethod
from tokred.visual_trace import TracedImage, VisualTrace

ATTRIBUTE = "_tokred_handle"


class MultimodalHandle(WayOut):
    """What :func:`tokred.patch` returns for a method on features or between layers.

    A context manager; leaving it removes the patch. ``remove`` may be called any number of times.

    Attributes:
        model: what was patched.
        methods: the methods in it.
        encoder: the handle of a method inside the image encoder, if there is one.
        modules: the learnable parts, by layer; they are not registered in the model.
    """

    def __init__(self, model: nn.Module, methods: tuple[Any, ...], encoder: Any = None) -> None:
        super().__init__(model, [] if encoder is None else [encoder.remove])
        self.methods = methods
        self.encoder = encoder
        self.features: FeatureReduction | None = None
        self.language: LanguageReduction | None = None

    @property
    def modules(self) -> nn.ModuleDict | None:
        """The learnable parts, by layer."""
        dropping = None if self.language is None else self.language.dropping
        return None if dropping is None else dropping.modules

    @property
    def trace(self) -> VisualTrace:
        """What became of the visual tokens of the last prompt.

        Raises:
            ValueError: no prompt has run since the model was patched.
        """
        if self.language is None or self.language.last is None:
            raise ValueError("No prompt has run since the model was patched.")
        return trace_of(self.language.last, len(self.language.model.layers))

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the learnable parts."""
        if self.modules is not None:
            self.modules.to(*args, **kwargs)
        return self

    def install(self, model: nn.Module) -> None:
        """Put the methods in; on any error the model is left as it was."""
        parts = find_multimodal(model)
        if ATTRIBUTE in vars(parts.inner):
            raise AlreadyPatchedError(
                f"{parts.name} is patched already with {vars(parts.inner)[ATTRIBUTE].methods!r}; remove that patch "
                "first, or give all methods in one call of tokred.patch."
            )
        features = next((m for m in self.methods if isinstance(m, FeatureMethod)), None)
        decoder = next((m for m in self.methods if isinstance(m, DecoderMethod)), None)
        vars(parts.inner)[ATTRIBUTE] = self
        self._undo.append(partial(forget, parts.inner, ATTRIBUTE))
        if features is not None:
            self.features = FeatureReduction(parts, features)
            self._undo += self.features.install()
        self.language = LanguageReduction(parts, features, decoder)
        self._undo += self.language.install()

    def __repr__(self) -> str:
        return self._describe(", ".join(map(repr, self.methods)))


def trace_of(passage: Passage, depth: int) -> VisualTrace:
    """Read what happened to every image off a passage through the language model."""
    prompts = []
    for b, row in enumerate(passage.images):
        traced = []
        for number, placed in enumerate(row):
            kept = placed.choice.map.kept[0]
            layers = [_present(passage, b, number, kept, layer) for layer in range(depth)]
            traced.append(TracedImage(placed.choice.map.slot[0], kept, tuple(layers), placed.choice.layout))
        prompts.append(tuple(traced))
    return VisualTrace(tuple(prompts), depth)


def _present(passage: Passage, prompt: int, image: int, kept: torch.Tensor, layer: int) -> torch.Tensor:
    """[m] bool, which of the kept tokens of an image are there in a layer."""
    stages = [s for s in passage.stages if s.layer <= layer and s.map is not None]
    if not stages:
        return torch.ones_like(kept, dtype=torch.bool)
    cut = passage.cut or passage.whole()
    images, patches = cut.image[prompt : prompt + 1], cut.patch[prompt : prompt + 1]
    for stage in stages:
        assert stage.map is not None
        rows = stage.map.kept[prompt : prompt + 1]
        images, patches = images.gather(1, rows), patches.gather(1, rows)
    valid = stages[-1].valid
    assert valid is not None
    there = patches[0][(images[0] == image) & valid[prompt]]
    return torch.isin(kept, there)
