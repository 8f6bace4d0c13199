"""DynamicViT: small networks predict which patches stay; trained with soft masks, used with hard ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokred import ops
from tokred.methods.base import Method
from tokred.methods.parts import load_parts, part_of, stage_parts
from tokred.methods.registry import register
from tokred.methods.stages import Keep, check_keep, stage_ends, staged
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import TokenMap
from tokred.view import LayerView

_LEAST = 1e-6


class DynamicViTPart(nn.Module):
    """Log probabilities of keeping and of dropping every patch (arXiv 2106.02034, Eqs. 2-5).

    Args:
        dim: width of the tokens, at least 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        half, quarter = dim // 2, dim // 4
        self.out_conv = nn.Sequential(
            nn.Linear(dim, half),
            nn.GELU(),
            nn.Linear(half, quarter),
            nn.GELU(),
            nn.Linear(quarter, 2),
        )

    def forward(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        """[B, P, 2] float32, keep first.

        Args:
            x: [B, P, C] patches.
            policy: [B, P] how much of each is still there, for the mean over the patches; ``None``: all.
        """
        local, other = self.in_conv(x.float()).chunk(2, dim=2)
        policy = torch.ones_like(x[:, :, :1], dtype=local.dtype) if policy is None else policy.unsqueeze(2)
        left = policy.sum(dim=1, keepdim=True).clamp(min=_LEAST)  # a draw may leave nothing
        whole = (other * policy).sum(dim=1, keepdim=True) / left + _LEAST
        return self.out_conv(torch.cat([local, whole.expand_as(other)], dim=2)).float().log_softmax(dim=2)


class DynamicViTLoss(NamedTuple):
    """The terms of the training, scalars before they are weighted.

    Attributes:
        classification: cross entropy.
        ratio: squared distance of the shares that stay from the schedule's.
        logits: KL divergence of the logits from the teacher's; 0 without.
        tokens: mean squared distance of the patches that stay from the teacher's; 0 without.
        total: their weighted sum.
    """

    classification: Tensor
    ratio: Tensor
    logits: Tensor
    tokens: Tensor
    total: Tensor


@register("dynamicvit")
@dataclass(frozen=True, kw_only=True)
class DynamicViT(Method):
    """Prune by learned predictors (Rao et al., arXiv 2106.02034).

    A predictor stands before a block in the paper; here behind the block before. Used, it keeps the patches with the
    highest keep probability, as many as the schedule says, in the order of that probability. Trained
    (``handle.modules.train()``), all patches stay, every decision is drawn by Gumbel-softmax and multiplied with those
    before it, and what was dropped is hidden from the attention and from average pooling behind it; the gradient is
    that of the soft decision. :func:`dynamicvit_loss` is what the paper trains with.

    Attributes:
        keep: share that stays at every stage; an int or tuple as for :class:`~tokred.TopK`.
        layers: blocks behind which patches are dropped; by default those before the quarters of the depth.
        temperature: of the Gumbel-softmax.
        weights: a safetensors file with the learned predictors; without, they are untrained.
    """

    paper: ClassVar[str] = "arXiv 2106.02034"
    learned: ClassVar[bool] = True
    site: ClassVar = "block_end"
    tracks: ClassVar[tuple[str, ...]] = ("prune",)

    keep: Keep = 0.7
    layers: tuple[int, ...] | None = None
    temperature: float = 1.0
    weights: str | Path | None = None

    def check(self) -> None:
        """Check ``keep`` and ``temperature``."""
        check_keep(self.keep)
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: a temperature must be above 0.")

    def law(self, shape: ModelShape) -> Schedule:
        """Shares q, q^2, q^3, ... of the patches at the stages."""
        counts = staged(self.keep, stage_ends(self.layers, shape.depth), shape)
        return Schedule({"prune": tuple(shape.num_prefix + n for n in counts)})

    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """The same with ``strength`` as the share."""
        return self.with_(keep=float(strength), schedule=None, budget=None).law(shape)

    def zero(self) -> Self:
        """Keep everything."""
        return self.with_(keep=1.0, weights=None, schedule=None, budget=None)

    def macs(self, tokens: int, stay: Mapping[str, int], layer: int, shape: ModelShape) -> int:
        """The predictor."""
        half, quarter = shape.dim // 2, shape.dim // 4
        return (tokens - shape.num_prefix) * (shape.dim**2 + shape.dim * half + half * quarter + 2 * quarter)

    def modules(self, shape: ModelShape) -> nn.ModuleDict:
        """A predictor for every stage."""
        parts = stage_parts(self, shape, lambda _: DynamicViTPart(shape.dim))
        return parts if self.weights is None else load_parts(parts, self.weights)

    def shares(self, shape: ModelShape) -> dict[int, float]:
        """The share of the patches that should be left behind every block that drops some."""
        tokens = (shape.num_tokens, *self.plan(shape).tokens(shape.num_tokens))
        return {
            layer: (tokens[layer + 1] - shape.num_prefix) / shape.num_patches
            for layer in range(shape.depth)
            if tokens[layer + 1] < tokens[layer]
        }

    def penalty(self, masks: Mapping[int, Tensor], shape: ModelShape) -> Tensor:
        """Twice the squared distance of the shares that stay from the schedule's, as the paper weighs it."""
        shares = self.shares(shape)
        return 2.0 * ratio_loss([masks[layer] for layer in masks], [shares[layer] for layer in masks])

    def reduce(self, view: LayerView) -> TokenMap:
        """Keep the prefix and the first patches by keep probability; in training, all, and hide some."""
        prefix = view.num_prefix
        scores = part_of(view, DynamicViTPart)(view.x[:, prefix:], self._policy(view))
        if view.module is not None and view.module.training:
            everything = TokenMap.identity(view.batch, view.num_tokens, view.x.device)
            return replace(everything, soft=F.pad(self.draw(scores), (prefix, 0), value=1.0))
        score = scores[:, :, 0].detach()
        order = ops.rank_descending(view.keep_padding(score))
        top = order[:, : view.stay["prune"] - prefix] + prefix
        return TokenMap.select(torch.cat([view.prefix_index(), top], dim=1), view.num_tokens)

    def draw(self, scores: Tensor) -> Tensor:
        """[B, P] decisions, 0 or 1, with the gradient of their probability, from log-probabilities [B, P, 2]."""
        return F.gumbel_softmax(scores, tau=self.temperature, hard=True)[:, :, 0]

    def _policy(self, view: LayerView) -> Tensor | None:
        """[B, P] what of the patches is there: no padding, and nothing that was dropped before."""
        policy = None if view.valid is None else view.valid.float()
        if view.soft is not None:
            policy = view.soft if policy is None else policy * view.soft
        return None if policy is None else policy[:, view.num_prefix :]


def dynamicvit_loss(
    logits: Tensor,
    labels: Tensor,
    masks: Mapping[int, Tensor],
    shares: Mapping[int, float],
    *,
    teacher_logits: Tensor | None = None,
    tokens: Tensor | None = None,
    teacher_tokens: Tensor | None = None,
    weight_ratio: float = 2.0,
    weight_logits: float = 0.5,
    weight_tokens: float = 0.5,
) -> DynamicViTLoss:
    """What DynamicViT is trained with (arXiv 2106.02034, Eqs. 9-13); the teacher is the model without a patch.

    Args:
        logits: [B, classes] of the model with soft masks.
        labels: [B] int64.
        masks: ``handle.trace.masks``: [B, P] decisions by block.
        shares: ``method.shares(shape)``: the share that should stay, by block.
        teacher_logits: [B, classes].
        tokens: [B, P, C] patches behind the last block, all of them.
        teacher_tokens: the same of the teacher.
        weight_ratio: of the ratio term.
        weight_logits: of the distance from the teacher's logits.
        weight_tokens: of the distance from the teacher's patches.

    Raises:
        ValueError: masks and shares are for different blocks, or only one of two sets of patches is given.
    """
    if masks.keys() != shares.keys():
        raise ValueError(
            f"There are masks of the blocks {sorted(masks)}, and shares for {sorted(shares)}. Masks are made while "
            "handle.modules is in training mode; read them with trace=True."
        )
    if (tokens is None) != (teacher_tokens is None):
        raise ValueError("Give the patches of both models, tokens and teacher_tokens, or of none.")
    none = logits.new_zeros(())
    classification = F.cross_entropy(logits, labels)
    ratio = ratio_loss([masks[layer] for layer in masks], [shares[layer] for layer in masks])
    in_logits, in_tokens = none, none
    if teacher_logits is not None:
        student, teacher = logits.log_softmax(dim=1), teacher_logits.detach().log_softmax(dim=1)
        in_logits = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    if tokens is not None and teacher_tokens is not None:
        kept = masks[max(masks)]
        in_tokens = token_loss(tokens, teacher_tokens.detach(), kept)
    total = classification + weight_ratio * ratio + weight_logits * in_logits + weight_tokens * in_tokens
    return DynamicViTLoss(classification, ratio, in_logits, in_tokens, total)


def ratio_loss(masks: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Mean over stages and images of the squared distance between the share that stays [B, P] and the wanted one."""
    if not masks:
        return torch.zeros(())
    return torch.stack([(m.mean(dim=1) - q).square().mean() for m, q in zip(masks, shares, strict=True)]).mean()


def token_loss(tokens: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared distance of the patches [B, P, C] that stay, by ``mask`` [B, P]."""
    kept = mask.unsqueeze(2)
    return ((tokens - teacher).square() * kept).sum() / (kept.sum() * tokens.shape[2]).clamp(min=1)
