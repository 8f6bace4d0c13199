"""Random pruning: the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from tokred.methods.base import Method
from tokred.methods.registry import register
from tokred.methods.stages import Keep, check_keep, staged
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import TokenMap
from tokred.view import LayerView


@register("random")
@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Keep patches at random, in their old order.

    The choice depends on the seed, the block and the number of tokens only: it is the same for all images, whatever the
    batch.

    Attributes:
        keep: share that stays at every stage; an int asks for that many patches at the end; a tuple lists the share of
            the initial patches for every stage.
        layers: blocks that prune; by default the quarters of the depth.
        seed: of the choice.
    """

    tracks: ClassVar[tuple[str, ...]] = ("prune",)

    keep: Keep = 0.7
    layers: tuple[int, ...] | None = None
    seed: int = 0

    def check(self) -> None:
        """Check ``keep``."""
        check_keep(self.keep)

    def law(self, shape: ModelShape) -> Schedule:
        """Shares q, q^2, q^3, ... of the patches at the stages."""
        counts = staged(self.keep, self.layers, shape)
        return Schedule({"prune": tuple(shape.num_prefix + n for n in counts)})

    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """The same with ``strength`` as the share."""
        return self.with_(keep=float(strength), schedule=None, budget=None).law(shape)

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=1.0, schedule=None, budget=None)

    def reduce(self, view: LayerView) -> TokenMap:
        """Keep the prefix and randomly drawn patches."""
        score = _noise(view.num_patches, 1_000_003 * self.seed + view.layer, view.x.device).expand(view.batch, -1)
        order = view.keep_padding(score).argsort(dim=1, descending=True, stable=True)
        drawn = order[:, : view.stay["prune"] - view.num_prefix].sort(dim=1).values + view.num_prefix
        return TokenMap.select(torch.cat([view.prefix_index(), drawn], dim=1), view.num_tokens)


def _noise(count: int, seed: int, device: torch.device) -> torch.Tensor:
    """[count] reproducible values in [0, 1) on every device: an integer hash of position and seed."""
    x = torch.arange(count, device=device, dtype=torch.int64) + 0x9E3779B9 * (seed + 1)
    for shift, factor in ((16, 0x45D9F3B), (15, 0x119DE1F3), (16, 1)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x.float() / 2**32
