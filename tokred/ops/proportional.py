"""Proportional attention: a token that stands for s patches is attended to s times (arXiv 2210.09461, section 3).

That adds one bias to every key, ``log s``. The ways to get there differ in which kernels of PyTorch they can use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred.ops.dispatch import dispatched

Way = Literal["mask", "keys", "values", "flex", "kernel"]

# (device, data type) to ((most keys, way), ...); what is not listed takes the mask. Reasons: docs/benchmarks.md.
CHOICE: dict[tuple[str, torch.dtype], tuple[tuple[int, Way], ...]] = {}


def proportional_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    scale: float | None = None,
    dropout: float = 0.0,
    way: Way | None = None,
) -> Tensor:
    """``softmax(q k^T scale + bias) v`` with one bias for every key.

    Args:
        q: [B, H, M, D].
        k: [B, G, N, D]; G divides H.
        v: [B, G, N, D].
        bias: [B or 1, N] logarithms of the sizes; minus infinity for keys that nobody sees.
        scale: factor on the products; ``None``: one over the root of D.
        dropout: on the attention; only the mask can do it.
        way: ``None`` looks it up in the table, by device, data type and N.
    """
    if way is None:
        way = choose_way(q.device, q.dtype, k.shape[2])
    factor = float(q.shape[-1] ** -0.5 if scale is None else scale)
    if dropout:
        return _with_mask(q, k, v, bias, factor, dropout)
    return _WAYS[way](q, k, v, bias, factor)


def choose_way(device: torch.device, dtype: torch.dtype, tokens: int) -> Way:
    """The way that the table names."""
    for most, way in CHOICE.get((device.type, dtype), ()):
        if tokens <= most:
            return way
    return "mask"


@dispatched
def key_biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None = None) -> Tensor:
    """:func:`proportional_attention` by a float mask, which rules out flash kernels; its Triton kernel has none."""
    return _with_mask(q, k, v, bias, q.shape[-1] ** -0.5 if scale is None else scale)


def with_key_channels(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """The bias in two more channels of the keys, against ones in the queries: any kernel without masks will do.

    The first channel holds ``bias / scale`` rounded to the data type, the second what rounding lost; widths are padded
    to a multiple of 8.
    """
    wide = _padded(q.shape[-1] + 2)
    target = (bias.double() if q.dtype == torch.float64 else bias.float()) / scale
    target = target.clamp(min=torch.finfo(q.dtype).min / 2)  # minus infinity less itself would not be a number
    high = target.to(q.dtype)
    low = (target - high.to(target.dtype)).to(q.dtype)
    extra = torch.stack([high, low], dim=-1)[:, None].expand(k.shape[0], k.shape[1], k.shape[2], 2)
    zeros = (0, wide - q.shape[-1] - 2)
    queries = F.pad(torch.cat([q, q.new_ones(*q.shape[:3], 2)], dim=-1), zeros)
    keys = F.pad(torch.cat([k, extra], dim=-1), zeros)
    y = _sdpa(queries, keys, F.pad(v, (0, wide - v.shape[-1])), None, scale)
    return y[..., : v.shape[-1]]


def with_value_channel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Values times their sizes, the sizes as one more channel, and a division: no logarithm takes part.

    Infinite sizes are not possible; the sum of attention times size must fit the data type.
    """
    wide = _padded(v.shape[-1] + 1)
    size = bias.exp()[:, None, :, None].expand(v.shape[0], v.shape[1], v.shape[2], 1)
    weighted = torch.cat([(v * size).to(v.dtype), size.to(v.dtype)], dim=-1)
    grow = (0, wide - q.shape[-1])
    y = _sdpa(F.pad(q, grow), F.pad(k, grow), F.pad(weighted, (0, wide - v.shape[-1] - 1)), None, scale)
    return y[..., : v.shape[-1]] / y[..., v.shape[-1] : v.shape[-1] + 1]


def with_flex_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """FlexAttention, which adds the bias inside its kernel; fast only where it is compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    bias = bias.expand(q.shape[0], k.shape[2])

    def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[b, j]

    y = flex_attention(q, k, v, score_mod=add, scale=scale, enable_gqa=k.shape[1] != q.shape[1])
    assert isinstance(y, Tensor), "asked for nothing else"
    return y


def _with_mask(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    return _sdpa(q, k, v, bias[:, None, None].to(q.dtype), scale, dropout)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float = 0.0) -> Tensor:
    if k.shape[1] != q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)


def _padded(width: int) -> int:
    return -(-width // 8) * 8


_WAYS: dict[Way, Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]] = {
    "mask": _with_mask,
    "keys": with_key_channels,
    "values": with_value_channel,
    "flex": with_flex_attention,
    "kernel": key_biased_attention,
}
