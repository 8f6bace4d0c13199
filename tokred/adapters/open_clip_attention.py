"""Reading open_clip's two attentions: torch's ``nn.MultiheadAttention``, and a class of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred import ops
from tokred.adapters.attention import AttentionReader, Removable, catch_input, catch_output, current_call
from tokred.ops import proportional_attention
from tokred.view import Signal


class MultiheadReader(AttentionReader):
    """``nn.MultiheadAttention`` shows nothing of its inside, so its self-attention is computed here, from its weights.

    It is what the module computes, by the fused attention function of torch.
    """

    def hooks(self, attn: Any, needs: Iterable[Signal]) -> list[Removable]:
        """Replace the forward of this instance."""
        return [OwnMultihead(attn)]

    def signals(
        self, attn: Any, caught: Mapping[str, Tensor], arguments: Mapping[str, Any], num_prefix: int
    ) -> Mapping[Signal, Callable[[], Tensor]]:
        """Signals of one call."""
        return {
            "head_keys": lambda: caught["k"],
            "keys": lambda: ops.head_mean(caught["k"]),
            "q": lambda: caught["q"],
            "k": lambda: caught["k"],
            "v": lambda: caught["v"],
        }


class OwnMultihead:
    """The replaced ``forward`` of one ``nn.MultiheadAttention``."""

    def __init__(self, attn: Any) -> None:
        self.attn = attn
        attn.forward = self.forward

    def remove(self) -> None:
        """Give the instance its own forward back."""
        vars(self.attn).pop("forward", None)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Self-attention of ``query`` [B, N, C]; anything else is left to the module."""
        call, attn = current_call(), self.attn
        inverted = attn_mask is not None and attn_mask.dtype == torch.bool  # true forbids, unlike in SDPA
        other = query is not key or need_weights or key_padding_mask is not None or bool(options)
        if call is None or other or inverted:
            original = type(attn).forward
            return original(attn, query, key, value, key_padding_mask, need_weights, attn_mask, **options)
        x = query if attn.batch_first else query.transpose(0, 1)
        heads = (*x.shape[:2], 3, attn.num_heads, attn.head_dim)
        q, k, v = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).view(heads).permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.view(x.shape[0], -1, *attn_mask.shape[1:])
        if attn_mask is not None:
            attn_mask = attn_mask.to(q.dtype)
        if call.catching:
            call.caught.update(q=q, k=k, v=v)
        dropout = attn.dropout if attn.training else 0.0
        if attn_mask is not None and attn_mask.shape[1:3] == (1, 1):  # one bias for every key
            y = proportional_attention(q, k, v, attn_mask[:, 0, 0], dropout=dropout)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        y = attn.out_proj(y.transpose(1, 2).flatten(2))
        return (y if attn.batch_first else y.transpose(0, 1)), None


class OpenClipReader(AttentionReader):
    """open_clip's ``Attention``: keys and queries are what ``ln_k`` and ``ln_q`` see and give."""

    def hooks(self, attn: Any, needs: Iterable[Signal]) -> list[Removable]:
        """Catch them."""
        if not needs:
            return []
        return [
            attn.ln_k.register_forward_pre_hook(partial(catch_input, "raw_keys")),
            attn.ln_k.register_forward_hook(partial(catch_output, "k")),
            attn.ln_q.register_forward_hook(partial(catch_output, "q")),
            attn.register_forward_pre_hook(partial(catch_input, "input")),
        ]

    def signals(
        self, attn: Any, caught: Mapping[str, Tensor], arguments: Mapping[str, Any], num_prefix: int
    ) -> Mapping[Signal, Callable[[], Tensor]]:
        """Signals of one call."""

        def values() -> Tensor:
            width = attn.in_proj_weight.shape[1]
            bias = None if attn.in_proj_bias is None else attn.in_proj_bias[2 * width :]
            v = F.linear(caught["input"], attn.in_proj_weight[2 * width :], bias)
            return v.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)

        return {
            "head_keys": lambda: caught["raw_keys"],
            "keys": lambda: ops.head_mean(caught["raw_keys"]),
            "q": lambda: caught["q"],
            "k": lambda: caught["k"],
            "v": values,
        }

    def reads(self, attn: Any) -> dict[str, int]:
        """Values are projected once more."""
        return {"v": attn.in_proj_weight.shape[1] ** 2}
