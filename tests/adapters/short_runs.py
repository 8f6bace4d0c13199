"""The slow truth that patched multimodal models are compared with: every prompt alone, cut by hand, without a cache."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Captured:
    """What the unpatched language model was called with."""

    embeds: Tensor
    positions: Tensor | None
    deep: list[Tensor] | None
    where: Tensor | None


@torch.no_grad()
def capture(model: Any, inputs: dict[str, Any]) -> Captured:
    """Run the unpatched model and keep the arguments of its language model."""
    language = getattr(model.model, "language_model", None) or model.model.text_model
    caught: dict[str, Any] = {}
    hook = language.register_forward_pre_hook(lambda _m, _a, kwargs: caught.update(kwargs), with_kwargs=True)
    try:
        model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return Captured(
        caught["inputs_embeds"],
        caught.get("position_ids"),
        caught.get("deepstack_visual_embeds"),
        caught.get("visual_pos_masks"),
    )


@torch.no_grad()
def short_logits(
    model: Any, inputs: dict[str, Any], kept: list[Tensor], more: Tensor | None = None, renumber: bool = True
) -> list[Tensor]:
    """Logits at the kept tokens of every prompt, each run alone through the unpatched language model.

    Args:
        model: unpatched.
        inputs: of a batch of prompts.
        kept: for every prompt the indices of the tokens that stay, in order.
        more: [B, n] tokens behind the prompts.
        renumber: positions count the kept tokens; ``False`` keeps those of the whole prompt.
    """
    caught = capture(model, inputs)
    language = getattr(model.model, "language_model", None) or model.model.text_model
    result = []
    for b, index in enumerate(kept):
        embeds = caught.embeds[b, index][None]
        kwargs: dict[str, Any] = {}
        if more is not None:
            embeds = torch.cat([embeds, model.get_input_embeddings()(more[b])[None]], dim=1)
        behind = embeds.shape[1] - len(index)
        positions = caught.positions
        if positions is not None and positions.ndim == 3:
            rope = model.config.get_text_config().rope_parameters
            axes = positions[-len(rope.get("mrope_section") or "xyz") :, b, index]
            whole = positions[-len(axes) :, b]
            new = whole[:, -1].max() + 1 + torch.arange(behind)
            kwargs["position_ids"] = torch.cat([axes, new.expand(len(axes), -1)], dim=1)[:, None]
        elif renumber:
            start = 1 if model.config.model_type == "paligemma" else 0
            kwargs["position_ids"] = torch.arange(start, start + embeds.shape[1])[None]
        else:
            first = inputs["attention_mask"][b].argmax()
            own = index - first + (1 if model.config.model_type == "paligemma" else 0)
            kwargs["position_ids"] = torch.cat([own, own[-1] + 1 + torch.arange(behind)])[None]
            kwargs["attention_mask"] = torch.ones_like(kwargs["position_ids"])  # the gaps are no packed sequences
        if caught.where is not None and caught.deep is not None:
            where = caught.where[b, index]
            rank = (caught.where.flatten().cumsum(0) - 1).view_as(caught.where)[b, index][where]
            kwargs["visual_pos_masks"] = torch.nn.functional.pad(where, (0, behind))[None]
            kwargs["deepstack_visual_embeds"] = [feature[rank] for feature in caught.deep]
        mask = bidirectional(model, inputs, b, index, embeds.shape[1])
        if mask is not None:
            kwargs["attention_mask"] = mask
        hidden = language(inputs_embeds=embeds, use_cache=False, **kwargs).last_hidden_state
        result.append(head(model, hidden)[0])
    return result


def bidirectional(model: Any, inputs: dict[str, Any], prompt: int, index: Tensor, length: int) -> Any:
    """The mask of families that look both ways inside a prompt or an image; ``None`` for causal ones."""
    kind = model.config.model_type
    if kind not in ("paligemma", "gemma3"):
        return None
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    if kind == "paligemma":  # the whole prompt looks both ways when there is no suffix
        prefix = torch.arange(length) < len(index)
        together = prefix[:, None] & prefix[None]
    else:
        image = torch.nn.functional.pad(inputs["token_type_ids"][prompt, index] == 1, (0, length - len(index)))
        number = spans(inputs["token_type_ids"][prompt])[index]
        number = torch.nn.functional.pad(number, (0, length - len(index)), value=-1)
        together = (number[:, None] == number[None]) & image[:, None]
    window = getattr(model.config.text_config, "sliding_window", None)
    if window is None:
        return (seen | together)[None, None]
    places = torch.arange(length)
    near = seen & (places[:, None] - places[None] < window)
    masks = {"full_attention": seen | together, "sliding_attention": near | together}
    low = torch.finfo(torch.float32).min  # not as bool: some attend eagerly
    return {layers: torch.where(mask, 0.0, low)[None, None] for layers, mask in masks.items()}


def spans(kind: Tensor) -> Tensor:
    """Number of the run of image tokens that each token is in, -1 for text."""
    image = kind == 1
    start = image & ~torch.nn.functional.pad(image, (1, 0))[:-1]
    return torch.where(image, start.cumsum(0), -1)


def head(model: Any, hidden: Tensor) -> Tensor:
    """Logits of hidden states."""
    logits = model.lm_head(hidden)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if "softcapping" not in inspect.getsource(type(model).forward):
        cap = None
    return logits if cap is None else torch.tanh(logits / cap) * cap


@torch.no_grad()
def greedy(model: Any, inputs: dict[str, Any], kept: list[Tensor], steps: int, renumber: bool = True) -> Tensor:
    """[B, steps] greedy continuations of the cut prompts, without a cache."""
    more = torch.zeros(len(kept), 0, dtype=torch.int64)
    for _ in range(steps):
        logits = short_logits(model, inputs, kept, more, renumber)
        more = torch.cat([more, torch.stack([row[-1].argmax() for row in logits])[:, None]], dim=1)
    return more


def kept_tokens(handle: Any) -> list[Tensor]:
    """For every prompt of the last forward, the indices of the tokens that the language model saw, in order."""
    cut = handle.language.last.cut
    return [cut.index[b][cut.valid[b]] for b in range(len(cut.index))]
