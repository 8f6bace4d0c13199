"""Reading timm's attention modules, and others built the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F

from tokred import ops
from tokred.adapters.attention import AttentionReader, Removable, catch_input, catch_output, current_call
from tokred.errors import UnsupportedModelError
from tokred.view import Signal


class TimmAttentionReader(AttentionReader):
    """Keys and queries are what ``k_norm`` and ``q_norm`` see and give; values come out of ``qkv`` or ``v_proj``.

    Where a module has no such norms (BEiT), the input of the attention is caught and the needed slice of its ``qkv``
    weight is applied to it.

    Attributes:
        tokens_first: the norms see [B, N, H, D] instead of [B, H, N, D].
    """

    def __init__(self, tokens_first: bool = False) -> None:
        self.tokens_first = tokens_first

    def hooks(self, attn: Any, needs: Iterable[Signal]) -> list[Removable]:
        """Catch the raw keys, the normalised queries and keys, and whatever values are computed from."""
        needs = set(needs) - {"before"}
        if not needs:
            return []
        hooks: list[Removable] = []
        if hasattr(attn, "k_norm"):
            if "keys" in needs:
                hooks.append(attn.k_norm.register_forward_pre_hook(self._catch_mean_keys))
            if "head_keys" in needs:
                hooks.append(attn.k_norm.register_forward_pre_hook(partial(catch_input, "raw_keys")))
            if needs & {"q", "k"}:
                hooks.append(attn.k_norm.register_forward_hook(partial(catch_output, "keys")))
                hooks.append(attn.q_norm.register_forward_hook(partial(catch_output, "queries")))
            if "v" in needs:
                hooks.append(_value_source(attn).register_forward_pre_hook(partial(catch_input, "input")))
        else:
            hooks.append(attn.register_forward_pre_hook(partial(catch_input, "input")))
        return hooks

    def signals(
        self, attn: Any, caught: Mapping[str, Tensor], arguments: Mapping[str, Any], num_prefix: int
    ) -> Mapping[Signal, Callable[[], Tensor]]:
        """Signals of one call; RoPE is applied to what the norms gave, as the attention does."""
        rope = arguments.get("rope")

        def raw_keys() -> Tensor:
            return self._heads_first(caught["raw_keys"]) if "raw_keys" in caught else _project(attn, caught["input"], 1)

        def used(name: str, index: int) -> Tensor:
            x = self._heads_first(caught[name]) if name in caught else _project(attn, caught["input"], index)
            return x if rope is None else _rotate(attn, x, rope)

        return {
            "head_keys": raw_keys,
            "keys": lambda: caught["mean_keys"] if "mean_keys" in caught else ops.head_mean(raw_keys()),
            "q": lambda: used("queries", 0),
            "k": lambda: used("keys", 1),
            "v": lambda: _project(attn, caught["input"], 2),
        }

    def reads(self, attn: Any) -> dict[str, int]:
        """Values are always projected once more; keys and queries where no norm shows them."""
        dim = next(m.in_features for m in attn.modules() if isinstance(getattr(m, "in_features", None), int))
        again = ("v",) if hasattr(attn, "k_norm") else ("v", "q", "k", "keys", "head_keys")
        return dict.fromkeys(again, dim * self.heads(attn) * self.head_dim(attn))

    def heads(self, attn: Any) -> int:
        """Both maps of a differential attention count."""
        return super().heads(attn) * (2 if _is_differential(attn) else 1)

    def width(self, attn: Any) -> int:
        """The values of a differential attention have double width."""
        return super().width(attn) * 3 // 2 if _is_differential(attn) else super().width(attn)

    def _catch_mean_keys(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Average at once, while the keys are in the cache; later they would have to be fetched again."""
        call = current_call()
        if call is not None and call.catching:
            call.caught["mean_keys"] = ops.head_mean(inputs[0], dim=2 if self.tokens_first else 1)

    def _heads_first(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if self.tokens_first else x


def _is_differential(attn: Any) -> bool:
    return hasattr(attn, "_compute_lambda")


def _value_source(attn: Any) -> nn.Module:
    """The module whose input is that of the attention: itself, or the projection of a fused block."""
    return getattr(attn, "in_proj", attn)


def _project(attn: Any, x: Tensor, index: int) -> Tensor:
    """Queries (0), keys (1) or values (2) of the attention input ``x`` [B, N, C], split into heads: [B, H, N, D]."""
    separate = getattr(attn, ("q_proj", "k_proj", "v_proj")[index], None)
    if separate is not None:
        y = separate(x)
    elif hasattr(attn, "in_split"):
        sizes = list(attn.in_split)[-3:]
        start = attn.in_proj.out_features - sum(sizes) + sum(sizes[:index])
        y = _slice_of(attn.in_proj, x, start, sizes[index], None)
    elif getattr(attn, "qkv", None) is not None:
        size = attn.qkv.out_features // 3
        own = getattr(attn, ("q_bias", "k_bias", "v_bias")[index], None)
        y = _slice_of(attn.qkv, x, index * size, size, own)
    else:
        raise UnsupportedModelError(f"{type(attn).__name__} has neither qkv, q_proj, k_proj, v_proj nor in_proj.")
    heads = getattr(attn, "num_kv_heads", attn.num_heads) if index else attn.num_heads
    return y.unflatten(2, (heads, y.shape[2] // heads)).transpose(1, 2)


def _slice_of(linear: Any, x: Tensor, start: int, size: int, own_bias: Tensor | None) -> Tensor:
    if type(linear) is not nn.Linear:  # adapted or quantised layers only work as a whole
        y = linear(x)[..., start : start + size]
        return y if own_bias is None else y + own_bias
    bias = own_bias if own_bias is not None else linear.bias
    if bias is linear.bias and bias is not None:
        bias = bias[start : start + size]
    return F.linear(x, linear.weight[start : start + size], bias)


def _rotate(attn: Any, x: Tensor, rope: Tensor) -> Tensor:
    prefix = getattr(attn, "num_prefix_tokens", 0)
    rotated = apply_rot_embed_cat(x[:, :, prefix:], rope, half=getattr(attn, "rotate_half", False))
    return torch.cat([x[:, :, :prefix], rotated], dim=2)
