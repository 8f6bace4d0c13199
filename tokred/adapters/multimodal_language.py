"""Short inside, full outside: the prompt is cut where the language model begins and full again where it ends."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokred.adapters.attention import Call, calling, current_call
from tokred.adapters.base import device_of
from tokred.adapters.huggingface_attention import HuggingFaceReader, OwnAttention
from tokred.adapters.multimodal import MultimodalModel
from tokred.adapters.multimodal_features import choices_on, pixels_of
from tokred.adapters.prompt import (
    ImageChoice,
    PlacedImage,
    Shortened,
    padding_of,
    place_images,
    positions_of,
    shorten,
)
from tokred.decoder_view import DecoderView
from tokred.errors import TokredError, UnsupportedModelError
from tokred.methods.decoder import DecoderMethod, check_layers
from tokred.token_map import TokenMap, gather_tokens, take

_RECORD = "_tokred_record"
_PASSAGE = "tokred_passage"


@dataclass(frozen=True, eq=False)
class CacheRecord:
    """What a cache must remember of the prompt that was cut; travels on the cache itself.

    Attributes:
        num_tokens: T, of the prompt outside.
        full: [B] int64, real tokens of each prompt outside.
        offset: [B, 1] int64, position of the first real token.
        last: [B] int64, position of the last real token outside.
        valid: [B, M] bool, the slots at the entry of the language model; ``None``: nothing was cut there.
        axes: axes of the positions in the layers; 1 where they count tokens.
        stages: layers where tokens were dropped, and which of their slots are real [B, M].
    """

    num_tokens: int
    full: Tensor
    offset: Tensor
    last: Tensor
    valid: Tensor | None
    axes: int = 1
    stages: tuple[tuple[int, Tensor], ...] = ()

    def since(self, cache: Any) -> int:
        """Tokens that came behind the prompt; below zero if rejected drafts were cut off again."""
        slots = self.num_tokens if self.valid is None else self.valid.shape[1]
        return cache.get_seq_length() - slots

    def mask(self, valid: Tensor, batch: int, behind: int) -> Tensor:
        """[B, M + behind] int64 mask over the slots ``valid`` and the tokens behind them; below zero cuts slots off."""
        valid = self.rows(valid, batch).long()
        return valid[:, :behind] if behind < 0 else torch.nn.functional.pad(valid, (0, behind), value=1)

    def rows(self, values: Tensor, batch: int) -> Tensor:
        """Repeat what belongs to prompts for the beams of each prompt."""
        return values if len(values) == batch else values.repeat_interleave(batch // len(values), dim=0)


@dataclass(eq=False)
class Stage:
    """One place between two layers where tokens are dropped.

    Attributes:
        layer: the layer at whose entry that is.
        map: from the slots before to those after.
        valid: [B, M] bool, real slots behind it.
        soft: [B, M] how much later layers see of every slot, in training; nothing is dropped then.
    """

    layer: int
    map: TokenMap | None = None
    valid: Tensor | None = None
    soft: Tensor | None = None
    masks: dict[int, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Drafting(Call):
    """One call of the model with its head.

    Attributes:
        drafts: tokens at the end that were only proposed.
    """

    catching: bool = False
    drafts: int = 0


@dataclass(eq=False)
class Passage(Call):
    """One call of the language model: what is cut at its entry and between its layers.

    Attributes:
        owner: the installed reduction.
        valid: [B, T] bool, real tokens outside.
        images: the images of every prompt.
        cut: the plan for the entry; ``None``: nothing is cut there.
        record: of the cache, behind the prompt.
        cache: what the layers write to.
        drafts: tokens behind the prompt that were only proposed.
    """

    catching: bool = False
    owner: Any = None
    valid: Tensor | None = None
    images: list[list[PlacedImage]] = field(default_factory=list)
    cut: Shortened | None = None
    record: CacheRecord | None = None
    cache: Any = None
    drafts: int = 0
    offset: Tensor | None = None
    last: Tensor | None = None
    axes: int = 1
    stages: list[Stage] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    seen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _whole: Shortened | None = None
    entered: bool = False

    def whole(self) -> Shortened:
        """The plan that leaves every token, padding too, where it is."""
        if self._whole is None:
            assert self.valid is not None
            self._whole = _whole(self.valid, self.images)
        return self._whole

    def see(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        """Keep queries and keys of the layers before the stages."""
        layer = self.owner.taps.get(module)
        if layer is not None and self.record is None:
            self.seen[layer] = query.detach(), key[:, :, : query.shape[2]].detach()


class LanguageReduction:
    """Cuts the prompts of one model; replaces the ``forward`` of its inner model and of its language model.

    Attributes:
        model: the model.
        reads_choices: a method chooses among the features of images.
        method: what drops tokens between layers, or ``None``.
        modules: learnable parts of that method.
        last: the passage of the last prompt.
        work: (class) the methods that are the price of the reduction, for benchmarks.
    """

    work: ClassVar[tuple[str, ...]] = ("_begin", "_enter", "_leave", "_decide", "_cut_layer")

    def __init__(self, model: MultimodalModel, reads_choices: bool, method: DecoderMethod | None) -> None:
        self.model = model
        self.reads_choices = reads_choices
        self.method = method
        self.last: Passage | None = None
        self.modules: nn.ModuleDict | None = None
        self.layers: tuple[int, ...] = ()
        self.taps: dict[nn.Module, int] = {}
        if method is not None:
            self._require_plain_layers()
            depth = len(model.layers)
            self.layers = method.stages(depth)
            check_layers(self.layers, depth)
            self.modules = method.modules(depth, model.language.config.hidden_size)
            if self.modules is not None:
                self.modules.to(device_of(model.language)).eval()  # in training they soften instead of dropping
            if method.reads_attention:
                self.taps = {model.attention_of(layer - 1): layer - 1 for layer in self.layers}
        self.arguments_of_inner = tuple(inspect.signature(type(model.inner).forward).parameters)

    def install(self) -> list[Callable[[], object]]:
        """Replace the forwards and add the hooks; returns what takes them back."""
        undo: list[Callable[[], object]] = []
        around = [(self.model.inner, self._inner), (self.model.language, self._language)]
        if self.model.outer is not None and self.method is not None:
            around.append((self.model.outer, self._outer))
        for module, forward in around:
            own = module.forward
            undo.append(partial(_give_back, module, vars(module).get("forward")))
            module.forward = partial(forward, own)
            vars(module.forward)["__signature__"] = inspect.signature(own)  # generate and trainers look at it
        if self.method is not None:
            for index, layer in enumerate(self.model.layers):
                undo.append(layer.register_forward_pre_hook(partial(self._layer, index), with_kwargs=True).remove)
        undo += [OwnAttention(attn).remove for attn in self.taps]
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
        passage = Passage(None, owner=self, valid=valid, images=images, cut=cut, cache=cache, drafts=drafts)
        if (cut is None and self.method is None) or not any(images):
            self.last = passage
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
        _require_continuation(record, mask, positions, since + new, batch)
        rotary = record.axes > 1
        if record.valid is not None:
            short = record.mask(record.valid, batch, since + new)
            if mask is not None or not bool(record.valid.all()):
                arguments["attention_mask"] = short
            if positions is None and not rotary:
                arguments["position_ids"] = positions_of(short)[:, -new:] + record.rows(record.offset, batch)
            elif positions is not None and positions.ndim == 2 and not rotary:
                gone = record.rows(record.full - record.valid.sum(dim=1), batch)
                arguments["position_ids"] = positions - gone[:, None]
        if positions is None and rotary:
            last = record.rows(record.last, batch)  # not from the model, where another thread may have written
            behind = last[:, None] + 1 + since + torch.arange(new, device=last.device)
            arguments["position_ids"] = behind.expand(record.axes, -1, -1)
        return Passage(None, owner=self, record=record, cache=cache)

    # ---------------------------------------------------------------- around the language model

    def _language(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        passage = current_call()
        if not isinstance(passage, Passage) or passage.owner is not self or passage.entered:
            return own(*args, **kwargs)
        passage.entered = True
        if self.method is not None:
            kwargs[_PASSAGE] = passage
        if passage.record is not None:
            return own(*args, **kwargs)
        assert passage.valid is not None
        kwargs = self._enter(passage, passage.valid, kwargs)
        output = own(*args, **kwargs)
        self._leave(passage, passage.valid, output)
        self.last = passage
        return output

    def _enter(self, passage: Passage, valid: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Cut what is indexed by token."""
        given, cut = kwargs.get("position_ids"), passage.cut
        passage.axes = self._axes(given)
        passage.offset, passage.last = _ends(valid, given)
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
            kwargs["position_ids"] = positions_of(cut.valid) + passage.offset
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

    def _axes(self, positions: Tensor | None) -> int:
        """Axes of the positions in the layers."""
        if positions is None or positions.ndim == 2:
            return 1
        rope = getattr(self.model.language.config, "rope_parameters", None) or {}
        return len(rope.get("mrope_section") or ()) or min(len(positions), 3)

    def _leave(self, passage: Passage, valid: Tensor, output: Any) -> None:
        """Give the states their full length back, and leave a record on the cache."""
        if self.method is not None and len(passage.stages) != len(self.layers):
            raise UnsupportedModelError(
                f"{type(self.model.language).__name__} does not hand on what its layers need to know, so "
                f"{type(self.method).__name__} dropped nothing. Use a method on the features, such as tokred.FoPru."
            )
        slot = None if passage.cut is None else passage.cut.expand
        hidden = getattr(output, "hidden_states", None)
        lengths = [slot] * len(self.model.layers)
        for stage in passage.stages:
            slot = slot if stage.map is None else _behind(stage.map, slot)
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
            record = CacheRecord(valid.shape[1], real, passage.offset, passage.last, cut, axes, dropped)
            setattr(cache, _RECORD, record)

    # ---------------------------------------------------------------- between the layers

    def _layer(
        self, index: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Pre-hook of every layer."""
        passage = kwargs.pop(_PASSAGE, None)
        if passage is None:
            return None
        if passage.record is not None:
            return self._layer_behind(index, passage, args, kwargs)
        x = args[0] if args else kwargs["hidden_states"]
        assert self.method is not None
        if index == 0 and self.method.reads_inputs and not passage.stages:
            with torch.no_grad():
                self.method.start(self._view(0, passage, x))
        stage = next((s for s in passage.stages if s.layer == index), None)
        if index in self.layers and stage is None:  # already there when a checkpoint runs the layer again
            stage = self._decide(index, passage, x)
            passage.stages.append(stage)
        if stage is not None and stage.map is not None:
            x = stage.map.apply(x)
        for stage in passage.stages:
            if stage.layer <= index:
                kwargs = self._cut_layer(stage, passage, x, kwargs)
        if args:
            return (x, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": x}

    def _decide(self, index: int, passage: Passage, x: Tensor) -> Stage:
        assert self.method is not None
        with torch.no_grad():
            view = self._view(index, passage, x)
        module = view.module
        if module is not None and module.training:
            soft = self.method.soften(view)
            if soft is not None:
                return Stage(index, soft=soft)
        with torch.no_grad():
            token_map = self.method.reduce(view)
        valid = view.valid.gather(1, token_map.kept)
        if token_map.valid is not None:
            valid = valid & token_map.valid
        return Stage(index, token_map, valid)

    def _view(self, index: int, passage: Passage, x: Tensor) -> DecoderView:
        method, cut = self.method, passage.cut or passage.whole()
        assert method is not None
        parts: dict[str, Tensor] = {
            "visual": cut.visual, "valid": cut.valid, "position": cut.index, "image": cut.image, "patch": cut.patch
        }  # fmt: skip
        assert passage.valid is not None
        places = torch.arange(passage.valid.shape[1], device=x.device)
        last = torch.where(passage.valid, places, -1).amax(dim=1, keepdim=True) - passage.drafts
        query = cut.expand.gather(1, last)[:, 0]
        for stage in passage.stages:
            if stage.map is not None:
                parts = {name: stage.map.gather(value) for name, value in parts.items()}
                parts["valid"] = stage.valid if stage.valid is not None else parts["valid"]
                query = _behind(stage.map, query[:, None])[:, 0]
        q, k = passage.seen.get(index - 1, (None, None))
        attn = self.model.layers[index - 1].self_attn if method.reads_attention and index else None
        scale = HuggingFaceReader().scale(attn) if attn is not None else None
        known = all(image.choice.layout is not None for row in passage.images for image in row)
        return DecoderView(
            x,
            layer=index,
            depth=len(self.model.layers),
            **{**parts, "visual": parts["visual"] & parts["valid"]},
            query=query,
            num_visual=cut.visual.sum(dim=1),
            layouts=[[i.choice.layout for i in row if i.choice.layout] for row in passage.images] if known else (),
            q=q,
            k=k,
            scale=float(scale) if scale is not None else None,
            module=self.modules[str(index)] if self.modules is not None and index else None,
            memory=passage.memory,
        )

    def _cut_layer(self, stage: Stage, passage: Passage, x: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a layer behind a stage gets besides its tokens."""
        kwargs = dict(kwargs)
        mask = kwargs.get("attention_mask")
        key = id(mask) if isinstance(mask, Tensor) else 0
        if stage.map is None:
            assert stage.soft is not None
            if key not in stage.masks:
                base = mask if isinstance(mask, Tensor) and mask.ndim == 4 else self._mask(passage, x, stage.layer)
                stage.masks[key] = _soften(base, stage.soft, x), mask
            kwargs["attention_mask"] = stage.masks[key][0]
            return kwargs
        token_map, valid = stage.map, stage.valid
        before, batch = token_map.num_tokens, len(token_map.kept)
        if key not in stage.masks:
            assert valid is not None
            if isinstance(mask, Tensor) and mask.ndim == 4:
                cut = Shortened(token_map.kept, valid, _nothing(batch, before, x.device), valid, valid, valid, ())
                stage.masks[key] = cut.mask(mask), mask
            else:
                stage.masks[key] = self._mask(passage, x, stage.layer, valid), mask
        kwargs["attention_mask"] = stage.masks[key][0]
        positions = kwargs.get("position_embeddings")
        if isinstance(positions, tuple):
            kwargs["position_embeddings"] = tuple(_rotary_rows(p, token_map.kept) for p in positions)
        for name, value in kwargs.items():
            fits = isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] in (1, batch)
            if fits and name != "attention_mask" and value.shape[1] == before:
                kwargs[name] = gather_tokens(value, token_map.kept, 1)
        return kwargs

    def _mask(self, passage: Passage, x: Tensor, layer: int, valid: Tensor | None = None) -> Any:
        from transformers.masking_utils import create_causal_mask

        if valid is None:
            valid = passage.valid if passage.cut is None else passage.cut.valid
        assert valid is not None
        return create_causal_mask(
            config=self.model.language.config,
            inputs_embeds=x,
            attention_mask=None if bool(valid.all()) else valid.long(),
            past_key_values=passage.cache,
            layer_idx=layer,
        )

    def _layer_behind(
        self, index: int, passage: Passage, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A layer behind the prompt: its mask must fit its own cache."""
        from transformers.masking_utils import create_causal_mask

        record = passage.record
        assert record is not None
        stage = next(((n, valid) for n, valid in reversed(record.stages) if n <= index), None)
        if stage is None:
            return args, kwargs
        first, valid = stage
        x = args[0] if args else kwargs["hidden_states"]
        if first not in passage.memory:
            length = passage.cache.get_seq_length(index) - valid.shape[1] + x.shape[1]
            passage.memory[first] = create_causal_mask(  # type: ignore[index]
                config=self.model.language.config,
                inputs_embeds=x,
                attention_mask=record.mask(valid, len(x), length),
                past_key_values=passage.cache,
                layer_idx=index,
            )
        return args, {**kwargs, "attention_mask": passage.memory[first]}  # type: ignore[index]

    def _require_plain_layers(self) -> None:
        config = self.model.language.config
        kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        if kinds or (getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None)):
            raise UnsupportedModelError(
                f"{type(self.method).__name__} drops tokens between layers, but {type(self.model.language).__name__} "
                f"has layers of other kinds ({', '.join(sorted(kinds)) or 'sliding_attention'}) that count in "
                "distances between tokens. Use a method on the features, such as tokred.FoPru."
            )
        if hasattr(self.model.language, "_deepstack_process"):
            deep = len(getattr(self.model.encoder, "deepstack_visual_indexes", ()))
            assert self.method is not None
            first = min(self.method.stages(len(self.model.layers)), default=deep)
            if first < deep:
                raise UnsupportedModelError(
                    f"{self.model.name} adds visual features behind its first {deep} layers, so tokens can be dropped "
                    f"from layer {deep} on; {type(self.method).__name__} begins at layer {first}. Give later layers."
                )


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(map(_holds_tensors, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Tensor) and value.ndim > 0


def _give_back(module: nn.Module, before: Any) -> None:
    if before is None:
        vars(module).pop("forward", None)
    else:
        module.forward = before


def _require_continuation(record: CacheRecord, mask: Any, positions: Tensor | None, behind: int, batch: int) -> None:
    """Refuse a cache that was cut to the short length by someone who knows the full one only.

    Args:
        record: of the cache.
        mask: [B, tokens so far] as given.
        positions: [.., B, new tokens] as given.
        behind: tokens behind the prompt, the new ones included.
        batch: B.
    """
    wrong = isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] != record.num_tokens + behind
    if not wrong and positions is not None:
        last = positions[-1] if positions.ndim == 3 else positions
        wrong = bool((last[:, -1] != record.rows(record.last, batch) + behind).any())
    if wrong:
        raise TokredError(
            f"The cache holds a prompt of {record.num_tokens} tokens in fewer slots, and what comes behind it does not "
            "start where that prompt ended. A second turn of a conversation cannot reuse the cache of a shortened "
            "prompt: pass the whole conversation without past_key_values."
        )


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


def _ends(valid: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions [B, 1] of the first and [B] of the last real token of every prompt."""
    places = torch.arange(valid.shape[1], device=valid.device)
    first = valid.long().argmax(dim=1, keepdim=True)
    last = torch.where(valid, places, -1).amax(dim=1, keepdim=True)
    if positions is None:
        return torch.zeros_like(first), valid.sum(dim=1) - 1
    if positions.ndim == 3:
        rows = positions[-1].expand(len(valid), -1)
        return torch.zeros_like(first), rows.gather(1, last)[:, 0]
    rows = positions.expand(len(valid), -1)
    return rows.gather(1, first), rows.gather(1, last)[:, 0]


def _whole(valid: Tensor, images: list[list[PlacedImage]]) -> Shortened:
    """The plan that leaves every token, padding too, where it is."""
    batch, tokens = valid.shape
    places = torch.arange(tokens, device=valid.device).expand(batch, -1)
    image = torch.full_like(places, -1)
    patch = torch.full_like(places, -1)
    for b, row in enumerate(images):
        for number, one in enumerate(row):
            image[b, one.places] = number
            patch[b, one.places] = torch.arange(len(one.places), device=valid.device)
    return Shortened(places, valid, places, image >= 0, image, patch, tuple(tuple(row) for row in images))


def _behind(token_map: TokenMap, slot: Tensor | None) -> Tensor:
    """[B, T] the slot behind a map that stands for each token, given the slot [B, T] before it."""
    kept = token_map.kept
    if token_map.valid is not None:  # padding must not be found
        kept = torch.where(token_map.valid, kept, -1)
    places = torch.arange(token_map.num_tokens, device=kept.device).expand(len(kept), -1)
    last = torch.searchsorted(kept.contiguous(), places.contiguous(), right=True) - 1
    first = (kept < 0).sum(dim=1, keepdim=True)
    last = torch.maximum(last, first)
    return last if slot is None else last.gather(1, slot)


def _nothing(batch: int, tokens: int, device: torch.device) -> Tensor:
    return torch.zeros(1, 1, dtype=torch.int64, device=device).expand(batch, tokens)


def _rotary_rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows [.., B, M, D] of cosines or sines [.., B or 1, T, D]."""
    if values.ndim == 3:
        return gather_tokens(values, index, 1)
    return torch.stack([gather_tokens(axis, index, 1) for axis in values])


def _soften(mask: Tensor | None, soft: Tensor, x: Tensor) -> Tensor:
    """A float mask [B, 1, T, T] to which the logarithm of ``soft`` [B, T] is added for every key."""
    tokens = x.shape[1]
    if mask is None:
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=x.device).tril()
    low = torch.finfo(x.dtype).min
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, low)
    bias = soft.clamp(min=torch.finfo(soft.dtype).tiny).log().to(x.dtype)[:, None, None]
    return (mask + bias).clamp(min=low)
