"""ZOO-Prune: keep patches to which the projector is sensitive, and which differ from each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokred import ops
from tokred.feature_view import FeatureView
from tokred.methods.features import FeatureMethod, keep_patches, keep_tokens
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("zoo_prune")
@dataclass(frozen=True, kw_only=True)
class ZOOPrune(FeatureMethod):
    """Keep patches by zeroth-order sensitivity times distance (arXiv 2509.24837).

    The sensitivity of a patch is how far the output of the projector moves when its feature moves a small step in
    random directions, the same ones for all patches. Patches are then chosen one by one: the most sensitive one, and
    then always that of the largest product of sensitivity, scaled to [0, 1], and distance ``1 - cos`` to the nearest
    chosen one. Everything is computed in float32: in half precision the step drowns in rounding. This takes ``2
    directions`` runs of the projector; the released code replaces it by a low-rank one for speed.

    The released code takes ``floor(2880 keep) / tiles`` patches of every tile, whatever the image; here it is
    ``floor(keep N)``, and patches in the letterbox padding are no candidates.

    Attributes:
        directions: random directions.
        step: length of the step.
        seed: of the directions.
        scope: choose within every partition, as released, or in the image as a whole.
    """

    paper: ClassVar[str] = "arXiv 2509.24837"
    reads_attention: ClassVar[bool] = False

    directions: int = 64
    step: float = 0.01
    seed: int = 0
    scope: Literal["partition", "image"] = "partition"

    def check(self) -> None:
        """Check the knobs."""
        if self.directions < 1 or self.step <= 0:
            raise ValueError(f"directions={self.directions}, step={self.step}: both must be above 0.")
        if self.scope not in ("partition", "image"):
            raise ValueError(f"scope={self.scope!r}: 'partition' or 'image'.")

    def reduce(self, view: FeatureView) -> TokenMap:
        """Choose the patches of every partition, or of the image."""
        layout = view.layout
        if self.keeps_all(layout):
            return keep_patches(layout, torch.ones_like(layout.shown), self.newlines)
        patches = view.patches.float()
        noise = torch.randn(self.directions, patches.shape[-1], generator=torch.Generator().manual_seed(self.seed))
        score = sensitivity(view.project, patches, noise.to(patches.device), self.step)
        if self.scope == "image" and layout.frames == 1:
            real = (~layout.newline).unsqueeze(0)
            score = layout.to_tokens(score).unsqueeze(0)
            order = choose(score, view.features.unsqueeze(0), self.in_all(int(real.sum())), real)
            return keep_tokens(layout, order[0], self.newlines)
        order = choose(score, layout.to_patches(view.features), self.per_partition(layout), layout.shown)
        return keep_tokens(layout, layout.token.gather(1, order.clamp(min=0))[order >= 0], self.newlines)


def sensitivity(project: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor, step: float) -> Tensor:
    """Mean over directions u of ``|M(x + h u) - M(x - h u)| / (2 h)`` for the projector M, some directions at a time.

    Args:
        project: the projector, [..., C] -> [..., D].
        x: [P, N, C] features in front of it.
        noise: [m, C] directions of any length.
        step: h.

    Returns:
        [P, N] float32.
    """
    moves = step * ops.unit(noise)
    chunk = max(1, 4096 // (x.shape[0] * x.shape[1]))
    total = torch.zeros(x.shape[:2], device=x.device)
    for move in moves.split(chunk):
        move = move.view(-1, 1, 1, move.shape[-1])
        ahead, behind = project(torch.stack([x + move, x - move])).float().unbind(0)
        total = total + (ahead - behind).norm(dim=-1).sum(dim=0)
    return total / (2 * step * noise.shape[0])


def choose(score: Tensor, tokens: Tensor, count: int, allowed: Tensor | None = None) -> Tensor:
    """Choose ``count`` tokens greedily by scaled score times distance to the nearest chosen one.

    Args:
        score: [B, N] sensitivity.
        tokens: [B, N, D] for the distances.
        count: at most N.
        allowed: [B, N] bool, false for tokens that are no candidates.

    Returns:
        [B, count] int64 in the order of choice, -1 behind the last candidate.
    """
    low, high = score, score
    if allowed is not None:
        low, high = score.masked_fill(~allowed, torch.inf), score.masked_fill(~allowed, -torch.inf)
    least = low.amin(dim=1, keepdim=True)
    weight = ((score - least) / (high.amax(dim=1, keepdim=True) - least + 1e-8)).clamp(min=0)
    return ops.farthest(tokens, count, high.argmax(dim=1), weight, allowed)
