"""ATS: sample patches in proportion to their significance, as many as the image needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from tokred.methods.base import Method, class_attention_macs
from tokred.methods.registry import register
from tokred.methods.stages import Keep, check_keep, staged
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import TokenMap
from tokred.view import LayerView


@register("ats")
@dataclass(frozen=True, kw_only=True)
class ATS(Method):
    """Adaptive token sampling (Fayyaz et al., arXiv 2111.15667, section 3).

    Significance is class attention times the length of the value (Eq. 3). Its cumulative distribution is inverted at
    evenly spaced quantiles (Eqs. 6-7), so several samples may fall on one patch: the schedule is an upper bound, images
    keep what they need, and shorter ones are padded to the longest of the batch.

    ``variant="paper"`` (default) uses K quantiles; the released code's quantiles end one too early for most K
    (``"released"``).

    Attributes:
        keep: share of the patches that may stay at every stage; an int or tuple as for :class:`~tokred.TopK`.
        layers: blocks that sample; by default the quarters of the depth.
        variant: ``"released"`` for the quantiles of the released code.
    """

    paper: ClassVar[str] = "arXiv 2111.15667"
    tracks: ClassVar[tuple[str, ...]] = ("prune",)
    needs: ClassVar = frozenset({"q", "k", "v"})
    adaptive: ClassVar[bool] = True

    keep: Keep = 0.7
    layers: tuple[int, ...] | None = None
    variant: Literal["paper", "released"] = "paper"

    def check(self) -> None:
        """Check ``keep``."""
        check_keep(self.keep)

    def law(self, shape: ModelShape) -> Schedule:
        """At most shares q, q^2, q^3, ... of the patches at the stages."""
        counts = staged(self.keep, self.layers, shape)
        return Schedule({"prune": tuple(shape.num_prefix + n for n in counts)})

    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """The same with ``strength`` as the share."""
        return self.with_(keep=float(strength), schedule=None, budget=None).law(shape)

    def zero(self) -> Self:
        """Sample nowhere."""
        return self.with_(keep=1.0, schedule=None, budget=None)

    def macs(self, tokens: int, stay: Mapping[str, int], layer: int, shape: ModelShape) -> int:
        """The class attention."""
        return class_attention_macs(tokens, layer, shape)

    def reduce(self, view: LayerView) -> TokenMap:
        """Sample patches by class attention times value length."""
        prefix = view.num_prefix
        values = view.v[:, :, prefix:].float().norm(dim=-1)
        attention = view.patch_attention()
        if values.shape[1] != attention.shape[1]:
            values = values.repeat_interleave(attention.shape[1] // values.shape[1], dim=1)
        score = (attention * values).sum(dim=1)
        valid = None if view.valid is None else view.valid[:, prefix:]
        picked, real = sample(score, view.stay["prune"] - prefix, self.variant, valid)
        picked = picked.masked_fill(~real, -prefix) + prefix
        real = torch.cat([torch.ones_like(view.prefix_index(), dtype=torch.bool), real], dim=1)
        return TokenMap.select(torch.cat([view.prefix_index(), picked], dim=1), view.num_tokens, valid=real)


def sample(
    score: Tensor, count: int, variant: Literal["paper", "released"] = "paper", valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution of ``score`` at ``count`` even quantiles (arXiv 2111.15667, Eqs. 6-7).

    Args:
        score: [B, P], not negative.
        count: K, the number of quantiles ``1/2K, 3/2K, ...``; the released variant has one less where its
            floating-point range ends early.
        variant: see above.
        valid: [B, P] bool, false for padding, which is never picked unless all quantiles lie behind the real tokens.

    Returns:
        Indices of the picked patches [B, M], rising, each once, and which of them are real; M is the largest number of
        picks in the batch (K where the graph must be static).
    """
    share = score.float() / (score.float().sum(dim=1, keepdim=True) + 1e-6)
    cumulative = share.cumsum(dim=1)
    if valid is not None:
        cumulative = cumulative + 0.1 * ~valid
    if variant == "released":
        quantile = torch.arange(1 / (2 * count), (2 * count - 1) / (2 * count), 1 / count, device=score.device)
    else:
        quantile = (2 * torch.arange(count, device=score.device) + 1) / (2 * count)
    nearest = (quantile[None, :, None] - cumulative[:, None, :]).abs().argmin(dim=2)
    picked = torch.zeros_like(score, dtype=torch.bool).scatter(1, nearest, True)
    length = nearest.shape[1]
    if not torch.compiler.is_compiling() and score.shape[0]:
        length = int(picked.sum(dim=1).max())
    index = picked.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :length]
    return index, picked.gather(1, index)
