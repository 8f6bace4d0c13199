"""Short inside, full outside: the prompt is cut where the language model begins and full again where it ends."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokred.adapters.attention import calling, current_call
from tokred.adapters.multimodal import MultimodalModel
from tokred.adapters.multimodal_features import choices_on, pixels_of
from tokred.adapters.multimodal_layers import PASSAGE, LayerReduction
from tokred.adapters.multimodal_passage import CacheRecord, Drafting, Passage
from tokred.adapters.prompt import (
    ImageChoice,
    PlacedImage,
    Shortened,
    ends_of,
    padding_of,
    place_images,
    positions_of,
    shorten,
    slots_behind,
)
from tokred.errors import TokredError, UnsupportedModelError
from tokred.methods.decoder import DecoderMethod
from tokred.methods.features import FeatureMethod
from tokred.token_map import TokenMap, gather_tokens, take

_RECORD = "_tokred_record"


class LanguageReduction:
    """Cuts the prompts of one model; replaces the ``forward`` of its inner model and of its language model.

    Attributes:
        model: the model.
        reads_choices: a method chooses among the features of images.
        renumbers: what stays of a prompt is counted anew, where positions have one axis.
        dropping: what drops tokens between layers, or ``None``.
        last: what became of the last prompt.
        work: (class) the methods that are the price of the reduction, for benchmarks.
    """

    work: ClassVar[tuple[str, ...]] = ("_begin", "_enter", "_leave")

    def __init__(self, model: MultimodalModel, features: FeatureMethod | None, method: DecoderMethod | None) -> None:
        self.model = model
        self.reads_choices = features is not None
        self.renumbers = features is None or features.positions == "renumbered"
        self.dropping = None if method is None else LayerReduction(model, method)
        self.last: Passage | None = None
        self.arguments_of_inner = tuple(inspect.signature(type(model.inner).forward).parameters)

    def install(self) -> list[Callable[[], object]]:
        """Replace the forwards and add the hooks; returns what takes them back."""
        undo: list[Callable[[], object]] = []
        around = [(self.model.inner, self._inner), (self.model.language, self._language)]
        if self.model.outer is not None and self.dropping is not None:
            around.append((self.model.outer, self._outer))
        for module, forward in around:
            own = module.forward
            undo.append(partial(_give_back, module, vars(module).get("forward")))
            module.forward = partial(forward, own)
            vars(module.forward)["__signature__"] = inspect.signature(own)  # generate and trainers look at it
        if self.dropping is not None:
            undo += self.dropping.install()
        return undo

    # ---------------------------------------------------------------- around the model with its head

    def _outer(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Assisted generation asks for the logits from the last prompt token on: what follows are drafts."""
        keep = kwargs.get("logits_to_keep", 0)
        cache = kwargs.get("past_key_values")
        drafts = keep - 1 if isinstance(keep, int) and keep > 1 and cache is not None else 0
        with calling(Drafting(None, drafts=drafts)):
            return own(*args, **kwargs)

    # ---------------------------------------------------------------- around the inner model

    def _inner(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        arguments = {**dict(zip(self.arguments_of_inner[1:], args, strict=False)), **kwargs}
        cache = arguments.get("past_key_values")
        record = getattr(cache, _RECORD, None) if cache is not None and cache.get_seq_length() else None
        images = self._images(arguments)
        if record is not None:
            if any(images.values()):
                raise TokredError(
                    "There are images behind a cache that holds a shortened prompt. Run the whole conversation with a "
                    "fresh cache, or remove the patch for this conversation."
                )
            passage = self._continue(arguments, record)
        else:
            passage = self._begin(arguments, images)
        if passage is None:
            return own(**arguments)
        with calling(passage):
            result = own(**arguments)
        if not passage.entered:
            raise UnsupportedModelError(
                f"{self.model.name} did not call its language model, so no token could be dropped. Please report it."
            )
        return result

    def _images(self, arguments: dict[str, Any]) -> dict[str, list[ImageChoice]]:
        """Encode the images that are given as pixels, as ``generate`` does, and collect what was chosen for them."""
        outputs = dict(arguments.get("mm_encoder_outputs") or {})
        chosen: dict[str, list[ImageChoice]] = {}
        for modality in ("image", "video"):
            name = pixels_of(arguments, modality)
            encode = getattr(self.model.inner, f"get_{modality}_features", None)
            if outputs.get(modality) is None and name is not None and encode is not None:
                wanted = inspect.signature(encode).parameters
                given = {k: v for k, v in arguments.items() if k in wanted and v is not None and k != "kwargs"}
                outputs[modality] = encode(**given, return_dict=True)
                arguments[name] = None
            if outputs.get(modality) is None:
                continue
            choices = choices_on(outputs[modality])
            if choices is None and self.reads_choices:
                raise TokredError(
                    f"The {modality} features were not made by this patched model in one piece (user-made "
                    "mm_encoder_outputs, or prefill_chunk_size), so nothing was chosen among them. Give the pixels, or "
                    f"what model.get_{modality}_features returned while patched, and leave prefill_chunk_size out."
                )
            if choices is None:
                rows = outputs[modality].pooler_output
                choices = [ImageChoice(TokenMap.identity(1, row[..., 0].numel(), row.device)) for row in rows]
            chosen[modality] = choices
        if outputs:
            arguments["mm_encoder_outputs"] = outputs
        return chosen

    def _begin(self, arguments: dict[str, Any], chosen: Mapping[str, list[ImageChoice]]) -> Passage | None:
        """The passage of a prompt; ``None`` if there is nothing to cut in it."""
        cache = arguments.get("past_key_values")
        behind = cache is not None and cache.get_seq_length() > 0
        if behind and not any(chosen.values()):
            return None
        if behind:
            raise TokredError(
                "The images stand behind a cache that holds an earlier part of the conversation, so the prompt cannot "
                "be cut as a whole. Run the whole conversation with a fresh cache."
            )
        ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
        tokens = ids if ids is not None else embeds
        assert tokens is not None, "the model refuses calls without a prompt itself"
        batch, length = tokens.shape[:2]
        images: list[list[PlacedImage]] = [[] for _ in range(batch)]
        if not any(chosen.values()) and ids is not None and bool(self._placeholder("image", ids, None).any()):
            raise TokredError(
                "There are placeholders of images in the prompts, but neither pixels nor features of images. If they "
                "were given to generate, leave prefill_chunk_size out."
            )
        for modality, choices in chosen.items():
            placeholder = self._placeholder(modality, ids, embeds)
            placed = place_images(placeholder, choices)
            if placed is None:
                raise TokredError(
                    f"The prompts have {placeholder.sum(dim=1).tolist()} placeholders for {modality} tokens, the "
                    f"features {[choice.num_tokens for choice in choices]}. Use the processor that belongs to the "
                    "model, with the same images in the same order, one image for every placeholder. (Some versions of "
                    "transformers put images in a wrong order where a prompt with several of them is repeated, as for "
                    "beam search.)"
                )
            images = [[*row, *more] for row, more in zip(images, placed, strict=True)]
        valid = padding_of(arguments.get("attention_mask"), batch, length, tokens.device)
        call = current_call()
        drafts = call.drafts if isinstance(call, Drafting) else 0
        cut = shorten(valid, images)
        taps = {} if self.dropping is None else self.dropping.taps
        passage = Passage(None, owner=self, valid=valid, images=images, cut=cut, cache=cache, drafts=drafts, taps=taps)
        if (cut is None and self.dropping is None) or not any(images):
            self.last = passage.outcome()
            return None
        return passage

    def _placeholder(self, modality: str, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
        token = getattr(self.model.inner.config, f"{modality}_token_id")
        if ids is not None:
            return ids == token
        assert embeds is not None
        word = self.model.inner.get_input_embeddings()(torch.tensor(token, device=embeds.device))
        return (embeds == word).all(dim=-1)

    def _continue(self, arguments: dict[str, Any], record: CacheRecord) -> Passage:
        """Behind the prompt: masks and positions that fit the cache."""
        cache = arguments["past_key_values"]
        ids = arguments.get("input_ids")
        tokens = ids if ids is not None else arguments["inputs_embeds"]
        batch, new = tokens.shape[:2]
        since = record.since(cache)
        mask, positions = arguments.get("attention_mask"), arguments.get("position_ids")
        record.require_continuation(mask, positions, since + new, batch)
        counted = record.axes == 1 and record.renumbered
        if record.valid is not None:
            short = record.mask(record.valid, batch, since + new)
            if mask is not None or not bool(record.valid.all()):
                arguments["attention_mask"] = short
            if positions is None and counted:
                arguments["position_ids"] = positions_of(short)[:, -new:] + record.rows(record.offset, batch)
            elif positions is not None and positions.ndim == 2 and counted:
                gone = record.rows(record.full - record.valid.sum(dim=1), batch)
                arguments["position_ids"] = positions - gone[:, None]
        if positions is None and not counted:
            last = record.rows(record.last, batch)  # not from the model, where another thread may have written
            behind = last[:, None] + 1 + since + torch.arange(new, device=last.device)
            arguments["position_ids"] = behind if record.axes == 1 else behind.expand(record.axes, -1, -1)
        return Passage(None, owner=self, record=record, cache=cache)

    # ---------------------------------------------------------------- around the language model

    def _language(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        passage = current_call()
        if not isinstance(passage, Passage) or passage.owner is not self or passage.entered:
            return own(*args, **kwargs)
        passage.entered = True
        if self.dropping is not None:
            kwargs[PASSAGE] = passage
        if passage.record is not None:
            return own(*args, **kwargs)
        assert passage.valid is not None
        kwargs = self._enter(passage, passage.valid, kwargs)
        output = own(*args, **kwargs)
        self._leave(passage, passage.valid, output)
        self.last = passage.outcome()
        return output

    def _enter(self, passage: Passage, valid: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Cut what is indexed by token."""
        given, cut = kwargs.get("position_ids"), passage.cut
        passage.axes = self._axes(given)
        offset, passage.last = ends_of(valid, given)
        passage.offset = offset
        if cut is None:
            return kwargs
        batch, tokens = valid.shape
        kwargs = dict(kwargs)
        x = kwargs["inputs_embeds"]
        if kwargs.get("visual_pos_masks") is not None:
            kwargs.update(_deep_features(cut, kwargs["visual_pos_masks"], kwargs.get("deepstack_visual_embeds")))
        kwargs["inputs_embeds"] = cut.embeddings(x)
        kwargs["attention_mask"] = _cut_mask(cut, kwargs.get("attention_mask"), self.model.language.config)
        if given is None or given.ndim == 2:
            kwargs["position_ids"] = self._line(valid, cut, given, offset)
            if not self.renumbers and kwargs["attention_mask"] is None:  # gaps would be taken for packed sequences
                kwargs["attention_mask"] = cut.valid.long()
        else:
            axes = gather_tokens(given.movedim(0, 1).expand(batch, -1, -1), cut.index, 2).movedim(1, 0)
            if len(axes) > self._axes(given):  # the first axis only tells packed sequences apart
                axes = torch.cat([positions_of(cut.valid)[None], axes[1:]])
            kwargs["position_ids"] = axes
        done = ("inputs_embeds", "attention_mask", "position_ids", "visual_pos_masks", "deepstack_visual_embeds")
        for name, value in kwargs.items():
            if name not in done and isinstance(value, Tensor) and value.shape[:2] == (batch, tokens):
                kwargs[name] = cut.rows(value)
            elif name not in done and _holds_tensors(value):
                raise UnsupportedModelError(
                    f"{self.model.name} hands {name} to its language model, and what they have to do with its tokens "
                    "is not known here. Use a method inside its image encoder, if there is one for it."
                )
        return kwargs

    def _line(self, valid: Tensor, cut: Shortened, given: Tensor | None, offset: Tensor) -> Tensor:
        """[B, M] positions of one axis in the short prompt."""
        if self.renumbers:
            return positions_of(cut.valid) + offset
        whole = positions_of(valid) if given is None else given.expand(len(valid), -1)
        return cut.rows(whole)

    def _axes(self, positions: Tensor | None) -> int:
        """Axes of the positions in the layers."""
        if positions is None or positions.ndim == 2:
            return 1
        rope = getattr(self.model.language.config, "rope_parameters", None) or {}
        return len(rope.get("mrope_section") or ()) or min(len(positions), 3)

    def _leave(self, passage: Passage, valid: Tensor, output: Any) -> None:
        """Give the states their full length back, and leave a record on the cache."""
        if self.dropping is not None:
            self.dropping.require_passed(passage)
        slot = None if passage.cut is None else passage.cut.expand
        hidden = getattr(output, "hidden_states", None)
        lengths = [slot] * len(self.model.layers)
        for stage in passage.stages:
            slot = slot if stage.map is None else slots_behind(stage.map, slot)
            lengths[stage.layer :] = [slot] * (len(lengths) - stage.layer)
        if slot is not None:
            output.last_hidden_state = take(output.last_hidden_state, slot)
        if hidden is not None:
            entry = None if passage.cut is None else passage.cut.expand
            outline = [entry, *lengths]
            output.hidden_states = tuple(
                state if s is None or state.shape[1] == s.shape[1] else take(state, s)
                for state, s in zip(hidden, outline, strict=False)
            )
        cache = getattr(output, "past_key_values", None)
        if cache is not None and passage.offset is not None and passage.last is not None:
            dropped = tuple((s.layer, s.valid) for s in passage.stages if s.valid is not None)
            cut = None if passage.cut is None else passage.cut.valid
            real, axes = valid.sum(dim=1), passage.axes
            record = CacheRecord(valid.shape[1], real, passage.offset, passage.last, cut, axes, self.renumbers, dropped)
            setattr(cache, _RECORD, record)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(map(_holds_tensors, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Tensor) and value.ndim > 0


def _give_back(module: nn.Module, before: Any) -> None:
    if before is None:
        vars(module).pop("forward", None)
    else:
        module.forward = before


def _cut_mask(cut: Shortened, mask: Any, config: Any) -> Any:
    """The mask of the short prompt; windows reach as far in it as in any other prompt."""
    if isinstance(mask, dict):
        whole = {kind: _cut_mask(cut, value, config) for kind, value in mask.items()}
        near, full = whole.get("sliding_attention"), whole.get("full_attention")
        if isinstance(near, Tensor) and near.ndim == 4 and isinstance(full, Tensor) and full.shape == near.shape:
            places = torch.arange(cut.num_slots, device=near.device)
            far = places[:, None] - places >= config.sliding_window
            far = far & ~(near if near.dtype == torch.bool else near == 0)  # some see all of their image, however far
            closed = False if full.dtype == torch.bool else torch.finfo(full.dtype).min
            whole["sliding_attention"] = full.masked_fill(far, closed)
        return whole
    if isinstance(mask, Tensor) and mask.ndim == 4:
        return cut.mask(mask)
    return cut.valid.long() if cut.padded else None


def _deep_features(cut: Shortened, where: Tensor, features: list[Tensor] | None) -> dict[str, Any]:
    """Visual features that later layers add, for the visual tokens that stay."""
    where = where.expand(len(cut.index), -1)
    short = cut.rows(where) & cut.valid
    rank = (where.flatten().cumsum(0) - 1).view_as(where)
    rows = cut.rows(rank)[short]
    return {
        "visual_pos_masks": short,
        "deepstack_visual_embeds": None if features is None else [feature[rows] for feature in features],
    }
