"""PiToMe: protect the tokens that have few near copies, merge among the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from tokred import ops
from tokred.methods.base import Method
from tokred.methods.registry import register
from tokred.schedule import Schedule, share_of
from tokred.shape import ModelShape
from tokred.token_map import TokenMap, take
from tokred.view import LayerView

Mode = Literal["protect", "order", "text"]


@register("pitome")
@dataclass(frozen=True, kw_only=True)
class PiToMe(Method):
    """Merge tokens of high energy, keep those of low energy as they are (Tran et al., arXiv 2405.16148, section 3).

    ``variant="paper"`` (default): protected merging in every block, margin 0.9, proportional attention.
    ``variant="released"`` freezes what the released patches do: the first half of the blocks of the DeiT recipe only
    orders the tokens by energy and merges as ToMe does, protecting nothing (the MAE recipe swaps the halves), the
    margin starts at 0.75, and sizes never reach the attention.

    Attributes:
        keep: share of the patches that stay in every block; an int asks for that many patches after the last one.
            Below one half it is clamped, since every merged token needs a partner.
        margin: similarity that counts as a near copy in the first block; it falls linearly to 0 behind the last one.
        alpha: depth of the negative branch of the energy.
        jump: the branch above the margin as the paper prints it, see :func:`tokred.ops.energy`.
        modes: one mode for all blocks, or one for each half.
        prop_attn: proportional attention.
        features: what similarity compares: head-averaged keys, or the tokens themselves (the CLIP and BLIP recipes).
        variant: ``"released"`` for what the released patches do, see above.
        recipe: which released patch ``variant="released"`` means.
    """

    paper: ClassVar[str] = "arXiv 2405.16148"
    needs: ClassVar = frozenset({"keys"})

    keep: float | int = 0.925
    margin: float | None = None
    alpha: float = 1.0
    jump: bool = False
    modes: Mode | tuple[Mode, Mode] | None = None
    prop_attn: bool | None = None
    features: Literal["keys", "tokens"] = "keys"
    variant: Literal["paper", "released"] = "paper"
    recipe: Literal["deit", "mae"] = "deit"

    def check(self) -> None:
        """Check ``keep`` and the margin."""
        share_of(self.keep, 1)
        if self.margin is not None and self.margin >= 1:
            raise ValueError(f"margin={self.margin}: a cosine is at most 1, so the margin must lie below.")

    @property
    def proportional(self) -> bool:
        """On in the paper, off in the released patches."""
        return self.variant == "paper" if self.prop_attn is None else self.prop_attn

    def mode(self, layer: int, depth: int) -> Mode:
        """How block ``layer`` merges."""
        modes = self.modes
        if modes is None and self.variant == "released":
            modes = ("order", "protect") if self.recipe == "deit" else ("protect", "order")
        if modes is None or isinstance(modes, str):
            return modes or "protect"
        return modes[0] if layer < math.ceil(depth / 2) else modes[1]

    def law(self, shape: ModelShape) -> Schedule:
        """Remove ``floor(T - T keep)`` of the T patches in every block."""
        keep = self.keep
        if isinstance(keep, int):
            keep = share_of(keep, shape.num_patches) ** (1 / shape.depth)
        return _keeping(keep, shape)

    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """One share for all blocks, from all down to a half."""
        return _keeping(0.5 + 0.5 * strength, shape)

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=1.0, schedule=None, budget=None)

    def least(self, tokens: int, num_prefix: int) -> int:
        """Half of the patches must stay."""
        return tokens - (tokens - num_prefix) // 2

    def macs(self, tokens: int, stay: Mapping[str, int], layer: int, shape: ModelShape) -> int:
        """The products of all keys with all keys, and those of the merged ones with their candidates."""
        patches, removed = tokens - shape.num_prefix, tokens - stay["merge"]
        candidates = removed if self.mode(layer, shape.depth) != "order" else patches // 2
        width = shape.dim if self.features == "tokens" else shape.blocks[layer].key_width
        return (patches**2 + candidates**2) * width

    def reduce(self, view: LayerView) -> TokenMap:
        """Rank the patches by energy and merge within the most redundant ones."""
        base = self.margin if self.margin is not None else (0.9 if self.variant == "paper" else 0.75)
        return energy_matching(
            view.keys if self.features == "keys" else view.x,
            view.stay["merge"],
            view.num_prefix,
            margin=margins(base, view.depth)[view.layer],
            alpha=self.alpha,
            jump=self.jump,
            mode=self.mode(view.layer, view.depth),
            valid=view.valid,
        )


def margins(base: float, depth: int) -> tuple[float, ...]:
    """The margin of every block: ``base (1 - l / L)`` (arXiv 2405.16148, section 3.2)."""
    return tuple(base * (1 - layer / depth) for layer in range(depth))


def energy_matching(
    metric: Tensor,
    stay: int,
    num_prefix: int,
    *,
    margin: float,
    alpha: float = 1.0,
    jump: bool = False,
    mode: Mode = "protect",
    valid: Tensor | None = None,
) -> TokenMap:
    """Merge patches in the order of their energy (arXiv 2405.16148, Algorithm 1).

    With r tokens to remove, ``"protect"`` takes the 2 r patches of highest energy, puts neighbours in rank on opposite
    sides, and merges every token of the one side into its best partner on the other; ``"text"`` puts the first r on the
    one side and the next r on the other, with a Gaussian energy. ``"order"`` deals all patches out to both sides and
    merges the r best pairs.

    Args:
        metric: [B, N, D] features, prefix tokens included.
        stay: tokens that stay, at least half of the patches and the prefix.
        num_prefix: tokens in front that take no part.
        margin: of the energy, for this block.
        alpha: of the energy.
        jump: of the energy.
        mode: see above.
        valid: [B, N] bool, false for padding, which ranks last and meets nobody.
    """
    batch, tokens, _ = metric.shape
    removed = tokens - stay
    patches = metric[:, num_prefix:]
    real = None if valid is None else valid[:, num_prefix:]
    if mode == "text":
        order = ops.rank_descending(ops.gaussian_energy(patches, margin, real))
    else:
        order = ops.rank_descending(ops.energy(patches, margin, alpha, jump, real))
    if mode == "order":
        sources, targets, protected = order[:, 0::2], order[:, 1::2], order[:, :0]
    elif mode == "text":
        sources, targets, protected = order[:, :removed], order[:, removed : 2 * removed], order[:, 2 * removed :]
    else:
        sources, targets, protected = (
            order[:, 0 : 2 * removed : 2],
            order[:, 1 : 2 * removed : 2],
            order[:, 2 * removed :],
        )
    best, partner = ops.best_match(
        take(patches, sources), take(patches, targets), ops.both_real(real, sources, targets)
    )
    unmerged = sources[:, :0]
    if mode == "order":
        rank = ops.rank_descending(best)
        unmerged, sources = sources.gather(1, rank[:, removed:]), sources.gather(1, rank[:, :removed])
        partner = partner.gather(1, rank[:, :removed])
    prefix = torch.arange(num_prefix, device=metric.device).expand(batch, -1)
    kept = torch.cat([prefix, torch.cat([protected, unmerged, targets], dim=1) + num_prefix], dim=1)
    into = partner + (stay - targets.shape[1])
    return TokenMap(kept, sources + num_prefix, into, tokens)


def _keeping(keep: float, shape: ModelShape) -> Schedule:
    counts, patches = [], shape.num_patches
    for _ in shape.blocks:
        patches -= min(math.floor(patches - patches * keep), patches // 2)
        counts.append(shape.num_prefix + patches)
    return Schedule({"merge": tuple(counts)})
