"""The place between image encoder and language model: what a method sees there, and what it chooses."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokred.adapters.attention import Call, calling, current_call
from tokred.adapters.huggingface_attention import HuggingFaceReader, OwnAttention
from tokred.adapters.huggingface_blocks import FAMILIES
from tokred.adapters.multimodal import MultimodalModel, encoder_attention, forget
from tokred.adapters.multimodal_layout import (
    PACK,
    EncodedImage,
    Kind,
    Packing,
    Unit,
    encoded_images,
    kind_of,
    pooling,
    units_of,
    window_order,
)
from tokred.adapters.prompt import ImageChoice
from tokred.errors import NonFiniteError, UnsupportedModelError
from tokred.feature_view import EncoderAttention, FeatureView
from tokred.layout import VisualLayout
from tokred.methods.features import FeatureMethod
from tokred.token_map import gather_tokens

_CHOICES = "_tokred_choices"
_MODALITIES = ("image", "video")


@dataclass(eq=False)
class Taps(Call):
    """What runs in this thread while images are encoded.

    Attributes:
        wanted: attention modules whose queries and keys are wanted, and their layers.
        calls: these, by layer, for every call.
        packed: the arguments with which tiles were put together, by name.
    """

    catching: bool = False
    wanted: Mapping[nn.Module, int] = field(default_factory=dict)
    calls: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    packed: dict[str, Any] = field(default_factory=dict)

    def see(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        """Keep them, by layer; of merged tokens every patch gets a copy."""
        layer = self.wanted.get(module)
        if layer is None:
            return
        inside = current_state()
        if inside is not None:
            slot = inside.clamp(min=0)
            query, key = gather_tokens(query, slot, 2), gather_tokens(key, slot, 2)
        self.calls.setdefault(layer, []).append((query.detach(), key.detach()))


def current_state() -> Tensor | None:
    """[B, N0] the slots of the tokens, where the block that runs in this thread sees fewer than entered the encoder."""
    call = current_call()
    return None if call is None or call.state is None or not call.state.steps else call.state.slot()


class FeatureReduction:
    """A method on the features of one model; replaces its ``get_image_features`` and ``get_video_features``.

    Attributes:
        model: the model.
        method: the method.
        depth: layers of the encoder; 0 if they cannot be read.
        produced_by: the encoder layer that makes the features.
        work: (class) the methods that are the price of the reduction, for benchmarks.
    """

    work: ClassVar[tuple[str, ...]] = ("choose",)

    def __init__(self, model: MultimodalModel, method: FeatureMethod) -> None:
        self.model = model
        self.method = method
        self.attention = encoder_attention(model.encoder)
        self.depth = len(self.attention)
        self.produced_by = self._produced_by()
        self.layers = method.layers(self.depth, self.produced_by) if self.depth else ()
        if method.reads_attention and kind_of(model.family) is None:
            raise self._unsupported("how its visual tokens come from patches is not known here")
        if method.reads_attention and not self.depth:
            raise self._unsupported("the attention of its image encoder cannot be read")
        self.num_prefix, self.has_class_token = prefix_of(model.encoder)
        self.own = {
            name: getattr(model.inner, name)
            for name in (f"get_{modality}_features" for modality in _MODALITIES)
            if hasattr(model.inner, name)
        }

    def install(self) -> list[Callable[[], object]]:
        """Replace the methods on the instance; returns what takes them back."""
        undo: list[Callable[[], object]] = [OwnAttention(self.attention[layer]).remove for layer in self.layers]
        for name, own in self.own.items():
            encode = partial(self.encode, name)
            encode.__signature__ = inspect.signature(own)  # type: ignore[attr-defined] - generate looks at it
            setattr(self.model.inner, name, encode)
            undo.append(partial(forget, self.model.inner, name))
        if hasattr(self.model.inner, PACK):
            setattr(self.model.inner, PACK, partial(self._pack, getattr(self.model.inner, PACK)))
            undo.append(partial(forget, self.model.inner, PACK))
        return undo

    def _pack(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Note how the model puts tiles together."""
        call = current_call()
        if isinstance(call, Taps):
            call.packed.update({**dict(zip(inspect.signature(own).parameters, args, strict=False)), **kwargs})
        return own(*args, **kwargs)

    def encode(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Run the model's own method and choose; the choices travel on what it returns."""
        own = self.own[name]
        if isinstance(current_call(), Taps):  # of videos, which the model passes on as if they were images
            return own(*args, **kwargs)
        names = list(inspect.signature(own).parameters)
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        with calling(Taps(None, wanted={self.attention[i]: i for i in self.layers})) as taps:
            output = own(*args, **kwargs)
        if getattr(output, "pooler_output", None) is not None:  # a tuple was asked for: nothing can travel on it
            with torch.no_grad():
                kind = kind_of(self.model.family, name.split("_")[1])
                give_choices(output, self.choose(output, arguments, taps, kind))
        return output

    def choose(self, output: Any, arguments: Mapping[str, Any], taps: Taps, kind: Kind | None) -> list[ImageChoice]:
        """What becomes of every image."""
        features = output.pooler_output
        hidden = getattr(output, "last_hidden_state", None)
        encoded = features if hidden is None or hidden.ndim == 2 else hidden  # of two dimensions: all in one sequence
        units = units_of(self.model, arguments, len(encoded))
        packing = Packing(self.model, taps.packed) if taps.packed else None
        images = encoded_images(features, units, packing, kind)
        reading = _Reading(self, taps, units or [], arguments, output, kind)
        return [self._choose(image, reading, number) for number, image in enumerate(images)]

    def _choose(self, image: EncodedImage, reading: _Reading, number: int) -> ImageChoice:
        if not bool(torch.isfinite(image.features.sum())):
            raise NonFiniteError(
                f"The features of image {number} are not finite, so {type(self.method).__name__} cannot choose among "
                "them. Check the pixels of the image and the precision (try bfloat16 instead of float16)."
            )
        layout = image.layout
        if layout is None:
            if self.method.reads_attention:
                raise self._unsupported("its visual tokens do not fit the patches that its encoder saw")
            layout = VisualLayout.plain((1, len(image.features)), device=image.features.device)
        view = reading.view(image, layout)
        try:
            return ImageChoice(self.method.reduce(view), image.layout)
        except KeyError as missing:
            raise self._unsupported(str(missing.args[0]).rstrip(".")) from missing

    def _produced_by(self) -> int:
        full = getattr(getattr(self.model.encoder, "config", None), "fullatt_block_indexes", None)
        if full:  # elsewhere the encoder looks into windows only
            return max(full)
        layers = self.model.feature_layers or (-1,)
        return max(n - 1 if n >= 0 else self.depth + n for n in layers)

    def _unsupported(self, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{type(self.method).__name__} cannot be used with {self.model.name}: {why}. Methods that look at the "
            "visual tokens alone, such as tokred.DivPrune or tokred.AIMMerge, work with every family."
        )


class _Reading:
    """What one call of ``get_image_features`` shows to methods."""

    def __init__(
        self,
        reduction: FeatureReduction,
        taps: Taps,
        units: list[Unit],
        arguments: Mapping[str, Any],
        output: Any,
        kind: Kind | None,
    ) -> None:
        self.reduction = reduction
        self.taps = taps
        self.units = units
        self.arguments = arguments
        self.output = output
        self.kind = kind
        self.shared: dict[int, EncoderAttention] = {}
        self.frames = [unit.frames for unit in units]
        lengths = {reduction.num_prefix + unit.grid[0] * unit.grid[1] for unit in units}
        self.batched = all(
            len(calls) == 1 and len(calls[0][0]) == sum(self.frames) and {calls[0][0].shape[2]} == lengths
            for calls in taps.calls.values()
        )

    def view(self, image: EncodedImage, layout: VisualLayout) -> FeatureView:
        """The view of one image."""
        reduction = self.reduction
        projector = getattr(reduction.model.inner, "multi_modal_projector", None)
        shown = self.kind == "same" and projector is not None and image.layout is not None
        shown = shown and len(self.output.last_hidden_state) == sum(self.frames)
        attention = partial(self._together if self.batched else self._alone, image, layout)
        return FeatureView(
            layout,
            image.features,
            attention=attention,
            partitions=self._rows(image) if self.batched or shown else slice(None),
            patches=partial(self._hidden, slice(reduction.num_prefix, None)) if shown else None,
            class_feature=partial(self._hidden, 0) if shown and reduction.has_class_token else None,
            project=self._project if shown else None,
            produced_by=reduction.produced_by,
            depth=max(reduction.depth, 1),
        )

    def _rows(self, image: EncodedImage) -> slice:
        """Which of the frames of all units belong to an image."""
        first = sum(self.frames[: image.units.start])
        return slice(first, first + sum(self.frames[image.units]))

    def _together(self, image: EncodedImage, layout: VisualLayout, layer: int) -> EncoderAttention:
        """The attention over all units at once."""
        if layer not in self.shared:
            self.shared[layer] = self._attention(layer, *self._calls(layer)[0], image, layout)
        return self.shared[layer]

    def _alone(self, image: EncodedImage, layout: VisualLayout, layer: int) -> EncoderAttention:
        """The attention over one image: a padded row of the batch, calls of its own, or a part of a long sequence."""
        calls = self._calls(layer)
        lengths = [unit.num_patches for unit in self.units]
        unit = self.units[image.units.start]
        one = self.reduction.num_prefix + unit.grid[0] * unit.grid[1]
        padded = self.arguments.get("pixel_attention_mask") is not None
        rows = [(q[i : i + 1], k[i : i + 1]) for q, k in calls for i in range(len(q))]
        if len(rows) == sum(self.frames) and all(
            q.shape[2] == one or (padded and q.shape[2] > one) for q, _ in rows[self._rows(image)]
        ):
            own = rows[self._rows(image)]
            q, k = (torch.cat([row[i][:, :, :one] for row in own]) for i in (0, 1))
        elif len(rows) == 1 and rows[0][0].shape[2] == sum(lengths) and not self.reduction.num_prefix:
            start = sum(lengths[: image.units.start])
            q, k = (t[:, :, start : start + unit.num_patches] for t in rows[0])
            q, k = (t[0].unflatten(1, (unit.frames, -1)).transpose(0, 1) for t in (q, k))
        else:
            raise KeyError(
                f"layer {layer} of its encoder does not look at whole images, one after the other "
                f"({len(rows)} sequences); name a layer that does"
            )
        return self._attention(layer, q, k, image, layout)

    def _calls(self, layer: int) -> list[tuple[Tensor, Tensor]]:
        if layer not in self.taps.calls:
            raise KeyError(f"layer {layer} of its encoder was not read")
        return self.taps.calls[layer]

    def _attention(
        self, layer: int, q: Tensor, k: Tensor, image: EncodedImage, layout: VisualLayout
    ) -> EncoderAttention:
        reduction = self.reduction
        unit = Unit(self.units[image.units.start].grid)
        pool = None
        if self.kind in ("blocks", "groups"):
            order = None
            if self.kind == "groups":
                grids = next(v for n, v in self.arguments.items() if n.endswith("grid_thw"))
                merge = unit.num_patches // layout.num_patches
                order = window_order(reduction.model, grids, image.units.start, merge)
            pool = pooling(self.kind, unit, layout.num_patches, None if order is None else order[: layout.num_patches])
        elif unit.num_patches != layout.num_patches:
            raise KeyError("its connector makes other visual tokens than one for every patch")
        scale = HuggingFaceReader().scale(reduction.attention[layer]) or q.shape[-1] ** -0.5
        return EncoderAttention(q, k, float(scale), reduction.num_prefix, reduction.has_class_token, pool)

    @cached_property
    def _exact_projector(self) -> nn.Module:
        """The projector in float32: finite differences are lost in half precision."""
        projector = self.reduction.model.inner.multi_modal_projector
        half = any(p.dtype in (torch.float16, torch.bfloat16) for p in projector.parameters())
        return copy.deepcopy(projector).float() if half else projector

    def _project(self, x: Tensor) -> Tensor:
        return self._exact_projector(x)

    def _hidden(self, rows: slice | int) -> Tensor:
        """[P, rows, C] of the features before the projector, for all units."""
        layers, states = self.reduction.model.feature_layers, getattr(self.output, "hidden_states", None)
        if layers is None or states is None:
            return self.output.last_hidden_state[:, rows]
        return torch.cat([states[n][:, rows] for n in layers], dim=-1)


def give_choices(output: Any, choices: list[ImageChoice]) -> None:
    """Let choices travel on what ``get_image_features`` returned."""
    setattr(output, _CHOICES, choices)


def prefix_of(encoder: nn.Module | None) -> tuple[int, bool]:
    """How many tokens an encoder has in front of those of patches, and whether the first is a class token."""
    config = getattr(encoder, "config", None)
    kind = FAMILIES.get(getattr(config, "model_type", ""))
    if kind is not None:
        return kind.prefix(config), kind.has_class_token
    names = [name for name, _ in encoder.named_parameters()] if encoder is not None else []
    found = any(name.endswith(("cls_token", "class_token", "class_embedding")) for name in names)
    return int(found), found


def choices_on(output: Any) -> list[ImageChoice] | None:
    """The choices that travel on what ``get_image_features`` returned."""
    return getattr(output, _CHOICES, None)


def pixels_of(arguments: Mapping[str, Any], modality: str) -> str | None:
    """The name of the argument that holds the pixels of a modality, if it is given."""
    names = ("pixel_values_videos",) if modality == "video" else ("pixel_values", "pixel_values_images")
    return next((n for n in names if isinstance(arguments.get(n), Tensor) and arguments[n].numel()), None)
