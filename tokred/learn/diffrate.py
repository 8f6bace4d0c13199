"""DiffRate's rates as something that learns (arXiv 2305.17997): expected counts, masks, and what they cost."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokred import ops
from tokred.errors import ConfigError, ScheduleMismatchError, UnsupportedModelError
from tokred.methods.diffrate import DiffRate, merge_sorted
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import TokenMap
from tokred.view import LayerView

_STEEP = 1e4  # a slope that leaves one candidate of any number
_ROUNDING = 1e-4  # a sum of float32 products that should be whole may lie this much above it


class Rates(nn.Module):
    """How many tokens every block but the first keeps by pruning, and then by merging, as distributions over counts.

    The differentiable discrete proxy of the paper: candidates are numbers of patches, and the count in force is the
    expected one, rounded up.

    Attributes:
        candidates: [K] patches that may be kept, falling.
        logits: [L - 1, 2, K] what is learned, for pruning and merging.
        start: the same before training.

    Args:
        shape: the model.
        granularity: distance of two candidates.
        start: expected counts before training; ``None``: every candidate is as likely as every other, as in the paper.

    >>> Rates(ModelShape.vit(depth=3, dim=192, heads=3, patches=196), granularity=2).schedule().tracks["merge"]
    (197, 100, 100)
    """

    candidates: Tensor
    start: Tensor

    def __init__(self, shape: ModelShape, granularity: int = 4, start: Schedule | None = None) -> None:
        super().__init__()
        if shape.depth < 2:
            raise ConfigError("DiffRate never reduces the first block, and this model has no other.")
        if not 1 <= granularity < shape.num_patches:
            raise ConfigError(f"granularity {granularity}: it must lie between 1 and {shape.num_patches - 1} patches.")
        self.num_tokens, self.num_prefix = shape.num_tokens, shape.num_prefix
        candidates = torch.arange(shape.num_patches, 0, -granularity, dtype=torch.float32)
        self.register_buffer("candidates", candidates, persistent=False)
        self.logits = nn.Parameter(torch.zeros(shape.depth - 1, 2, len(candidates)))
        if start is not None:
            counts = torch.tensor([start.tracks["prune"], start.tracks["merge"]]).T[1:] - self.num_prefix
            self.logits.data = (
                slopes(candidates / candidates[0], counts / candidates[0])[..., None] * candidates / candidates[0]
            )
        self.register_buffer("start", self.logits.detach().clone(), persistent=False)

    def kept(self) -> Tensor:
        """[L - 1, 2] the tokens that stay, prefix included; rounding up lets the gradient through."""
        expected = (self.logits.softmax(dim=-1) * self.candidates).sum(dim=-1)
        rounded = (expected.detach() - _ROUNDING).ceil()
        return rounded + (expected - expected.detach()) + self.num_prefix

    def chance(self, layer: int) -> Tensor:
        """[2, N] how likely the token at each place of the order stays after block ``layer``, by the distributions."""
        place = torch.arange(self.num_tokens, device=self.logits.device)
        stays = self.candidates[:, None] + self.num_prefix > place  # [K, N]
        return (self.logits[layer - 1].softmax(dim=-1).unsqueeze(-1) * stays).sum(dim=-2)  # no product under autocast

    def schedule(self) -> Schedule:
        """The counts in force."""
        prune, merge = self.kept().detach().round().int().T.tolist()
        whole = self.num_tokens
        return Schedule({"prune": (whole, *prune), "merge": (whole, *merge)}, num_tokens=whole)

    def tilted(self, slope: float) -> Rates:
        """Rates whose chances are multiplied by ``e^(slope k / P)``: of all with that mean the nearest to these."""
        tilted = copy.deepcopy(self)
        tilted.logits.data += slope * self.candidates / self.candidates[0]
        return tilted

    @property
    def untrained(self) -> bool:
        """Nothing has changed since the start."""
        return torch.equal(self.logits.detach(), self.start)


def slopes(values: Tensor, means: Tensor) -> Tensor:
    """How steep chances ``softmax(slope values)`` must be to have a mean: [...] for ``means`` [...] of ``values`` [K].

    Of all distributions with that mean these have the greatest entropy. Means at the ends are met to half a step.
    """
    half = (values[0] - values[1]) / 2
    means = means.clamp(values[-1] + half, values[0] - half)
    low, high = torch.full_like(means, -_STEEP), torch.full_like(means, _STEEP)
    for _ in range(60):
        middle = (low + high) / 2
        below = ((middle[..., None] * values).softmax(dim=-1) * values).sum(dim=-1) < means
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def survive(chance: Tensor, kept: int, gone: Tensor) -> Tensor:
    """Masks that are hard forwards and pass gradients on to chances.

    Args:
        chance: [N] of the token at each place of the order.
        kept: places that stay.
        gone: [.., N] bool, tokens that are masked already, which stay as they are.

    Returns:
        [.., N] 0 or 1.
    """
    hard = ((torch.arange(len(chance), device=chance.device) < kept) | gone).to(chance.dtype)
    return hard + (chance - chance.detach())


@dataclass(frozen=True, kw_only=True)
class MaskedDiffRate(DiffRate):
    """DiffRate in training: every block sorts its tokens and masks what inference would remove.

    Attributes:
        rates: what learns.
    """

    masks: ClassVar[bool] = True

    rates: Rates

    def law(self, shape: ModelShape) -> Schedule:
        """The counts that the rates say now."""
        if shape.num_tokens != self.rates.num_tokens or shape.depth != len(self.rates.logits) + 1:
            raise ScheduleMismatchError(
                f"The rates are for {len(self.rates.logits) + 1} blocks and {self.rates.num_tokens} tokens; the model "
                f"has {shape.depth} blocks and gets {shape.num_tokens} tokens. Learn with images of one size."
            )
        return self.rates.schedule()

    def zero(self) -> None:
        """Rates are what they are."""

    def reduce(self, view: LayerView) -> TokenMap:
        """All tokens, sorted, the first of them merged; ``soft`` masks those that inference would remove."""
        if view.valid is not None:
            raise UnsupportedModelError("DiffRate learns from images of one size, without padding.")
        if view.layer == 0:
            return TokenMap.identity(view.batch, view.num_tokens, view.x.device)
        prune_to, merge_to = view.stay["prune"], view.stay["merge"]
        token_map = self._sorted(view, prune_to, merge_to)
        before = view.x.new_ones(view.x.shape[:2], dtype=torch.float32) if view.soft is None else view.soft.detach()
        gone = token_map.gather(before) == 0
        by_pruning, by_merging = self.rates.chance(view.layer)
        soft = survive(by_pruning, prune_to, gone)
        if merge_to < prune_to:
            soft = soft * survive(by_merging, merge_to, gone | (soft.detach() == 0))
        return replace(token_map, soft=soft)

    @torch.no_grad()
    def _sorted(self, view: LayerView, prune_to: int, merge_to: int) -> TokenMap:
        with torch.autocast(view.x.device.type, enabled=False):  # order and partners are those of inference
            importance = view.class_attention()
            if view.soft is not None:
                importance = importance.masked_fill(view.soft[:, view.num_prefix :] == 0, -1.0)
            order = ops.rank_descending(importance)
            return merge_in_place(view.x, view.sizes, order, prune_to, merge_to, view.num_prefix)


def merge_in_place(
    x: Tensor, sizes: Tensor | None, order: Tensor, prune_to: int, merge_to: int, num_prefix: int
) -> TokenMap:
    """:func:`tokred.methods.diffrate.merge_sorted` as it is in training: every token keeps a slot, in that order.

    A merged token keeps at least 1 of its size, and gives that to its target.
    """
    batch, tokens, _ = x.shape
    prefix = torch.arange(num_prefix, device=x.device).expand(batch, -1)
    everything = torch.cat([prefix, order + num_prefix], dim=1)
    hard = merge_sorted(x, order, prune_to, merge_to, num_prefix)
    if hard.size_weight is None:
        return TokenMap.select(everything, tokens)
    similarity = hard.size_weight[:, merge_to:]
    size = torch.ones_like(similarity) if sizes is None else sizes.gather(1, hard.moved)
    weight = torch.ones(batch, tokens + similarity.shape[1], device=x.device)
    size_weight, given = weight.clone(), (size * similarity).clamp(min=1.0) / size
    size_weight[:, merge_to:prune_to] = size_weight[:, tokens:] = given
    return replace(hard, kept=everything, weight=weight, size_weight=size_weight)


def formula_macs(shape: ModelShape, kept: Tensor) -> Tensor:
    """DiffRate's formula of the multiply-accumulates, with a gradient for the counts.

    The same numbers as :func:`tokred.cost.cost` in the convention "diffrate". The fewest of the tokens before a block
    and of both counts of it stay; both counts get the whole gradient, the tokens before none.

    Args:
        shape: the model.
        kept: [L - 1, 2] of the blocks behind the first.
    """
    tokens = kept.new_tensor(float(shape.num_tokens))
    total = kept.new_tensor(round(shape.stem_macs * shape.num_tokens / shape.num_patches) + shape.head_macs)
    for layer, block in enumerate(shape.blocks):
        after = tokens
        if layer:
            counts = kept[layer - 1]
            fewest = torch.minimum(tokens, counts.min()).detach()
            after = fewest + (counts - counts.detach()).sum()
        attention = block.attention_weights * tokens + 2 * block.attention_width * tokens.square()
        total = total + attention + block.mlp_weights * (tokens if block.parallel else after)
        tokens = after
    return total + shape.head_weights * tokens


def diffrate_loss(cross_entropy: Tensor, macs: Tensor, target: float, weight: float = 5.0, unit: float = 1e9) -> Tensor:
    """``cross_entropy + weight ((macs - target) / unit)^2``."""
    return cross_entropy + weight * ((macs - target) / unit).square()
