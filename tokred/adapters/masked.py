"""Masked attention in training enters a foreign attention through the argument that takes its mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.errors import UnsupportedModelError
from tokred.ops import masked_softmax

_SOFTMAX = {torch.softmax, Tensor.softmax, F.softmax}
_SAME_KEYS = {
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.to, Tensor.float, Tensor.expand, Tensor.__getitem__,
    Tensor.masked_fill,
}  # fmt: skip


class MaskedBias(Tensor):
    """An additive attention bias [.., N] that also says how much every key counts.

    It is given where a model takes its attention mask. Whatever the attention does with a mask (add it to the logits
    and take their softmax, or hand it to ``scaled_dot_product_attention``) then runs
    :func:`tokred.ops.masked_softmax`. What else might happen to it is refused, so that no mask is lost in silence.

    Attributes:
        alive: [B, N] factor on every key, with a gradient.
    """

    alive: Tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` on the bias; results that still have one column a key say how much every key counts."""
        kwargs = kwargs or {}
        alive = next(a.alive for a in (*args, *kwargs.values()) if isinstance(a, MaskedBias))
        with torch._C.DisableTorchFunctionSubclass():
            if func in _SOFTMAX:
                return _softmax(alive, *args, **kwargs)
            if func is F.scaled_dot_product_attention:
                return _attention(alive, *args, **kwargs)
            result = func(*args, **kwargs)
        if func in _SAME_KEYS:
            return masked(result, alive)
        if isinstance(result, Tensor):
            name = getattr(func, "__name__", str(func))
            raise UnsupportedModelError(
                f"The attention of this model takes its mask through {name}, which is not known to keep masked tokens "
                "out, so nothing that masks tokens can be trained in it. Please report the model."
            )
        return result


def masked(bias: Tensor, alive: Tensor | None) -> Tensor:
    """``bias`` [.., N] as it is, or with ``alive`` [B, N], if tokens are masked."""
    if alive is None:
        return bias
    result = bias.as_subclass(MaskedBias)
    result.alive = alive
    return result


def _softmax(alive: Tensor, logits: Tensor, dim: int | None = None, *, dtype: Any = None, **_more: Any) -> Tensor:
    if dim not in (-1, logits.ndim - 1):
        raise UnsupportedModelError(f"Masked attention needs a softmax over the keys, not over dimension {dim}.")
    return masked_softmax(logits, alive).to(dtype or logits.dtype)


def _attention(
    alive: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if is_causal or enable_gqa:
        raise UnsupportedModelError("Masked attention knows neither causal masks nor grouped queries.")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    logits = (q * scale) @ k.transpose(-2, -1) + attn_mask
    return F.dropout(masked_softmax(logits, alive).to(v.dtype), dropout_p) @ v
