"""SparseVLM: words of the prompt that have to do with the image rate its tokens; some of the dropped are grouped."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from tokred import ops
from tokred.decoder_view import DecoderView
from tokred.errors import ScheduleMismatchError
from tokred.methods.decoder import DecoderMethod, check_layers, count_share, scaled_layers
from tokred.methods.features import check_keep
from tokred.methods.registry import register
from tokred.token_map import TokenMap, take

# tokens after each of the three stages, of 576, for the average that the release calls them by
_PLANS = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
_RATERS = "sparsevlm.raters"


@register("sparsevlm")
@dataclass(frozen=True, kw_only=True)
class SparseVLM(DecoderMethod):
    """Rate by the relevant text, and recycle a part of what is pruned (Zhang et al., arXiv 2410.04417).

    Raters, text tokens more similar to the image than the mean, are chosen once, on the embeddings. A stage keeps the
    visual tokens that they attend to most in the layer before, averaged over raters and heads. Of the pruned ones the
    best are grouped by density peaks, and every group lives on as one token, on top of the count.

    Differences and what we could not verify: kept tokens keep their positions, where the release counts them anew; a
    group becomes the mean of its tokens at the place of its centre; raters are taken from the text behind the last
    image, by the softmax over that text of the plain products with the visual embeddings; the defaults of ``recycle``,
    ``groups`` and ``neighbours`` could not be checked. The second set of counts in the release is left out.

    Attributes:
        keep: 192, 128, 96 or 64: the counts of the release for that many tokens on average, which are made for 576
            tokens and 32 layers, and are scaled to other numbers of tokens; or a tuple for the stages, of counts (int)
            or shares of the original tokens (float).
        layers: at whose entry tokens are dropped; by default 2, 6 and 15 of 32, scaled to other depths.
        recycle: share of the pruned tokens that is grouped; 0 for none.
        groups: how many groups, as a share of the recycled tokens, rounded up.
        neighbours: tokens around that make the density.
    """

    paper: ClassVar[str] = "arXiv 2410.04417"
    reads_inputs: ClassVar[bool] = True

    keep: int | tuple[int | float, ...] = 192
    layers: tuple[int, ...] | None = None
    recycle: float = 0.3
    groups: float = 0.1
    neighbours: int = 5

    def check(self) -> None:
        """Check all knobs."""
        if not isinstance(self.keep, tuple) and self.keep not in _PLANS:
            raise ValueError(
                f"keep={self.keep!r}: the release has counts for {', '.join(map(str, _PLANS))} tokens on average; "
                "give a tuple with a count (int) or a share (float) for every stage instead."
            )
        for amount in self._plan():
            check_keep(amount)
        check_layers(self.layers or ())
        if not 0 <= self.recycle <= 1 or not 0 < self.groups <= 1 or self.neighbours < 1:
            raise ValueError(
                f"recycle={self.recycle}, groups={self.groups}, neighbours={self.neighbours}: shares in [0, 1] and "
                "(0, 1], and at least 1 neighbour."
            )

    def stages(self, depth: int) -> tuple[int, ...]:
        """The layers given, or those of the release, scaled."""
        layers = scaled_layers((2, 6, 15), 32, depth) if self.layers is None else tuple(self.layers)
        check_layers(layers, depth)
        plan = self._plan()
        if len(layers) != len(plan) and (self.layers is not None or len(layers) > len(plan)):
            raise ScheduleMismatchError(f"keep lists {len(plan)} amounts for {len(layers)} stages.")
        return layers

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=(1.0,) * len(self.layers or _PLANS[192]))

    def start(self, view: DecoderView) -> None:
        """Choose the raters."""
        chosen = raters(view.x, view.visual, view.instruction)
        by_position = torch.zeros(chosen.shape[0], int(view.position.max()) + 1, dtype=torch.bool, device=chosen.device)
        # a token that is no text may share the position of one that is, where it is only padding
        index = torch.where(view.text, view.position, by_position.shape[1])
        spare = torch.nn.functional.pad(by_position, (0, 1))
        view.memory[_RATERS] = spare.scatter(1, index, chosen)[:, :-1]

    def raters(self, view: DecoderView) -> Tensor:
        """[B, T] bool: the raters; chosen here if nobody showed us the embeddings."""
        if _RATERS not in view.memory:
            self.start(view)
        return view.memory[_RATERS].gather(1, view.position) & view.text

    def score(self, view: DecoderView) -> Tensor:
        """[B, T] attention from the raters, averaged over them and the heads."""
        return view.attention_from(self.raters(view)).mean(dim=1)

    def reduce(self, view: DecoderView) -> TokenMap:
        """Keep the best visual tokens, and group some of the others."""
        score = self.score(view)
        amount = self._plan()[self.stages(view.depth).index(view.layer)]
        keep = view.top(score, count_share(view.num_visual, amount))
        dropped = view.visual & ~keep
        count = count_share(dropped.sum(dim=1), self.recycle, _floor)
        most = int(count.max())
        if most == 0:
            return view.select(keep)
        return self._group(view, score.masked_fill(~dropped, -torch.inf), keep, count, most)

    def _group(self, view: DecoderView, score: Tensor, keep: Tensor, count: Tensor, most: int) -> TokenMap:
        """Recycle the ``count`` [B] best by ``score`` [B, T], at most ``most`` in a prompt."""
        tokens = score.shape[1]
        valid = torch.arange(most, device=score.device) < count.unsqueeze(1)
        pool = torch.where(valid, ops.rank_descending(score)[:, :most], tokens).sort(dim=1).values
        pool = pool.clamp(max=tokens - 1)
        centre = density_peaks(take(view.x, pool), count_share(count, self.groups, _ceil), valid, self.neighbours)
        is_centre = valid & (centre == torch.arange(most, device=score.device))
        centres = torch.zeros_like(keep).scatter_reduce(1, pool, is_centre, "amax")
        token_map = view.select(keep | centres)
        into = token_map.slot.gather(1, pool.gather(1, centre.clamp(min=0)))
        joins = valid & ~is_centre
        # what joins nothing is an anchor, whose slot stays what it is
        moved = torch.where(joins, pool, token_map.kept[:, -1:])
        return replace(token_map, moved=moved, into=torch.where(joins, into, -1))

    def _plan(self) -> tuple[int | float, ...]:
        if isinstance(self.keep, tuple):
            return self.keep
        return tuple(count / 576 for count in _PLANS[self.keep])


def raters(x: Tensor, visual: Tensor, text: Tensor) -> Tensor:
    """Text tokens whose similarity to the visual tokens is above the mean; all of them where none is above.

    The similarity of a text token is its share in the softmax over the text of ``x_v x_t``, averaged over the visual
    tokens v.

    Args:
        x: [B, T, C] embeddings.
        visual: [B, T] bool, at least one for the result to mean anything.
        text: [B, T] bool, the tokens to choose from.

    Returns:
        [B, T] bool.
    """
    weight = visual.float() / visual.sum(dim=1, keepdim=True).clamp(min=1)
    one = x.unsqueeze(1)
    open_ = (text | ~text.any(dim=1, keepdim=True))[:, None, None]
    similarity = ops.attention_received(one, one, 1.0, weight.unsqueeze(1), open_).squeeze(1)
    mean = (similarity * text).sum(dim=1, keepdim=True) / text.sum(dim=1, keepdim=True).clamp(min=1)
    above = text & (similarity > mean)
    return torch.where(above.any(dim=1, keepdim=True), above, text)


def density_peaks(x: Tensor, count: Tensor, valid: Tensor, neighbours: int = 5) -> Tensor:
    """Cluster tokens around density peaks.

    The density of a token is ``exp(-mean d^2)`` over its nearest neighbours, d the Euclidean distance divided by the
    square root of C; its isolation is the distance to the nearest token that is denser (to the farthest token for the
    densest one); centres have the highest product of both, and everybody joins the nearest centre. Logarithms keep the
    order where the exponential would vanish. Equal densities: the lower index counts as denser.

    Args:
        x: [B, R, C].
        count: [B] int64, clusters; at most the number of valid tokens.
        valid: [B, R] bool; padding stands behind the valid tokens.
        neighbours: how many, where there are as many.

    Returns:
        [B, R] int64, the centre of every token's cluster, its own index for a centre; -1 for padding.
    """
    tokens = x.shape[1]
    index = torch.arange(tokens, device=x.device)
    exact = x.float()
    distance = torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(x.shape[2])
    other = valid.unsqueeze(1) & (index != index.unsqueeze(1))
    nearest = distance.masked_fill(~other, torch.inf).sort(dim=2).values[..., : min(neighbours, tokens - 1)]
    found = nearest.isfinite()
    density = -torch.where(found, nearest, 0).square().sum(dim=2) / found.sum(dim=2).clamp(min=1)
    density = density.masked_fill(~valid, -torch.inf)
    mine, theirs = density.unsqueeze(2), density.unsqueeze(1)
    denser = valid.unsqueeze(1) & ((theirs > mine) | ((theirs == mine) & (index < index.unsqueeze(1))))
    isolation = torch.where(
        denser.any(dim=2),
        distance.masked_fill(~denser, torch.inf).amin(dim=2),
        distance.masked_fill(~other, 0).amax(dim=2),
    )
    rank = ops.rank_descending((density + isolation.log()).masked_fill(~valid, -torch.inf)).argsort(dim=1)
    centres = valid & (rank < count.unsqueeze(1))
    closest = distance.masked_fill(~centres.unsqueeze(1), torch.inf).min(dim=2).indices
    return torch.where(valid, torch.where(centres, index, closest), -1)


def _floor(amount: float) -> int:
    return math.floor(amount + 1e-9)


def _ceil(amount: float) -> int:
    return math.ceil(amount - 1e-9)
