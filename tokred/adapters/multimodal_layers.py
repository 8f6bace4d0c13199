"""Between the layers of a language model: tokens are dropped, and what later layers get is made to fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokred.adapters.base import device_of
from tokred.adapters.huggingface_attention import HuggingFaceReader, OwnAttention
from tokred.adapters.multimodal import MultimodalModel
from tokred.adapters.multimodal_passage import Passage, Stage
from tokred.adapters.prompt import cut_mask, slots_behind
from tokred.decoder_view import DecoderView
from tokred.errors import UnsupportedModelError
from tokred.methods.decoder import DecoderMethod, check_layers
from tokred.token_map import gather_tokens

PASSAGE = "tokred_passage"  # the keyword argument in which layers get the passage


class LayerReduction:
    """Drops tokens between the layers of one model, by a pre-hook on every layer.

    Attributes:
        model: the model.
        method: what drops tokens.
        layers: at whose entry that is.
        modules: learnable parts of the method, by layer.
        taps: attention modules whose queries and keys are read, and their layers.
        work: (class) the methods that are the price of the reduction, for benchmarks.
    """

    work: ClassVar[tuple[str, ...]] = ("_decide", "_cut_layer")

    def __init__(self, model: MultimodalModel, method: DecoderMethod) -> None:
        self.model = model
        self.method = method
        depth = len(model.layers)
        self.layers = method.stages(depth)
        check_layers(self.layers, depth)
        self._require_plain_layers()
        self.modules = method.modules(depth, model.language.config.hidden_size)
        if self.modules is not None:
            self.modules.to(device_of(model.language)).eval()  # in training they soften instead of dropping
        self.taps: dict[nn.Module, int] = {}
        if method.reads_attention:
            self.taps = {model.attention_of(layer - 1): layer - 1 for layer in self.layers}

    def install(self) -> list[Callable[[], object]]:
        """Add the hooks; returns what takes them out."""
        undo: list[Callable[[], object]] = []
        for index, layer in enumerate(self.model.layers):
            undo.append(layer.register_forward_pre_hook(partial(self._layer, index), with_kwargs=True).remove)
        return undo + [OwnAttention(attn).remove for attn in self.taps]

    def require_passed(self, passage: Passage) -> None:
        """Every stage must have been passed.

        Raises:
            UnsupportedModelError: the language model does not hand its keyword arguments on to its layers.
        """
        if len(passage.stages) != len(self.layers):
            raise UnsupportedModelError(
                f"{type(self.model.language).__name__} does not hand on what its layers need to know, so "
                f"{type(self.method).__name__} dropped nothing. Use a method on the features, such as tokred.FoPru."
            )

    def _layer(
        self, index: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Pre-hook of every layer."""
        passage = kwargs.pop(PASSAGE, None)
        if passage is None:
            return None
        if passage.record is not None:
            return self._layer_behind(index, passage, args, kwargs)
        x = args[0] if args else kwargs["hidden_states"]
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
                query = slots_behind(stage.map, query[:, None])[:, 0]
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
                cut = passage.cut or passage.whole()
                four = isinstance(mask, Tensor) and mask.ndim == 4
                base = mask if four else self._mask(stage.layer, x, cut.valid, passage.cache)
                stage.masks[key] = _soften(base, stage.soft, x), mask
            kwargs["attention_mask"] = stage.masks[key][0]
            return kwargs
        token_map, valid = stage.map, stage.valid
        before, batch = token_map.num_tokens, len(token_map.kept)
        if key not in stage.masks:
            assert valid is not None
            if isinstance(mask, Tensor) and mask.ndim == 4:
                stage.masks[key] = cut_mask(mask, token_map.kept, valid, before), mask
            else:
                stage.masks[key] = self._mask(stage.layer, x, valid, passage.cache), mask
        kwargs["attention_mask"] = stage.masks[key][0]
        positions = kwargs.get("position_embeddings")
        if isinstance(positions, tuple):
            kwargs["position_embeddings"] = tuple(_rotary_rows(p, token_map.kept) for p in positions)
        for name, value in kwargs.items():
            fits = isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] in (1, batch)
            if fits and name != "attention_mask" and value.shape[1] == before:
                kwargs[name] = gather_tokens(value, token_map.kept, 1)
        return kwargs

    def _mask(self, layer: int, x: Tensor, valid: Tensor, cache: Any) -> Any:
        """The causal mask of a layer over the slots [B, keys] that are real, as its kind of attention takes it."""
        from transformers.masking_utils import create_causal_mask

        return create_causal_mask(
            config=self.model.language.config,
            inputs_embeds=x,
            attention_mask=None if bool(valid.all()) else valid.long(),
            past_key_values=cache,
            layer_idx=layer,
        )

    def _layer_behind(
        self, index: int, passage: Passage, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A layer behind the prompt: its mask must fit its own cache."""
        record = passage.record
        assert record is not None
        stage = next(((n, valid) for n, valid in reversed(record.stages) if n <= index), None)
        if stage is None:
            return args, kwargs
        first, valid = stage
        x = args[0] if args else kwargs["hidden_states"]
        if first not in passage.masks:
            length = passage.cache.get_seq_length(index) - valid.shape[1] + x.shape[1]
            real = record.mask(valid, len(x), length).bool()
            passage.masks[first] = self._mask(index, x, real, passage.cache)
        return args, {**kwargs, "attention_mask": passage.masks[first]}

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
            first = min(self.layers, default=deep)
            if first < deep:
                raise UnsupportedModelError(
                    f"{self.model.name} adds visual features behind its first {deep} layers, so tokens can be dropped "
                    f"from layer {deep} on; {type(self.method).__name__} begins at layer {first}. Give later layers."
                )


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
