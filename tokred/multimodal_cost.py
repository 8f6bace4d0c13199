"""Analytic cost of a prompt with images: what the language model computes before its first word."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tokred.adapters.base import linear_size
from tokred.adapters.huggingface_attention import HuggingFaceReader
from tokred.adapters.multimodal import find_multimodal
from tokred.errors import UnsupportedModelError

_READER = HuggingFaceReader()


def prefill_cost(model: nn.Module, text_tokens: int, visual_tokens_per_layer: Sequence[int]) -> int:
    """Multiply-accumulates of the language model for one prompt, its image encoder left out.

    Every layer at the tokens that it sees, attention as a full matrix, as in :func:`tokred.cost.cost`; the head for the
    last token only, as ``generate`` runs it. What a method spends on deciding is not in it.

    Args:
        model: a multimodal model of transformers, patched or not.
        text_tokens: tokens of the prompt that belong to no image.
        visual_tokens_per_layer: visual tokens that each layer sees, such as a row of
            ``handle.trace.tokens_per_layer``.

    Raises:
        UnsupportedModelError: no multimodal model, or one with layers of experts, of which each token sees only some.
        ValueError: one count too many or too few.
    """
    found = find_multimodal(model)
    if len(visual_tokens_per_layer) != len(found.layers):
        raise ValueError(
            f"{len(visual_tokens_per_layer)} token counts were given; the language model has {len(found.layers)} "
            "layers."
        )
    macs = 0
    for index, (layer, visual) in enumerate(zip(found.layers, visual_tokens_per_layer, strict=True)):
        _require_dense(layer, index)
        tokens = text_tokens + visual
        weights, _ = linear_size([layer])
        attn = found.attention_of(index)
        macs += weights * tokens + 2 * _width(attn) * tokens * tokens
    head = getattr(found.outer, "lm_head", None)
    return macs if head is None else macs + linear_size([head])[0]


def _width(attn: nn.Module) -> int:
    """Heads times head width: what one token's attention weights cost for one key."""
    heads = getattr(attn, "num_heads", None) or getattr(attn.config, "num_attention_heads", None)
    return int(heads) * int(_READER.head_dim(attn))  # type: ignore[arg-type]


def _require_dense(layer: nn.Module, index: int) -> None:
    if any(name.rpartition(".")[2] == "experts" for name, _ in layer.named_modules()):
        raise UnsupportedModelError(
            f"Layer {index} of the language model consists of experts, of which every token sees only some; their cost "
            "cannot be read off the modules. Compare kept tokens or measured time instead."
        )
