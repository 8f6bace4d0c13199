"""Sparsity Meets Similarity: keep the patches in front of the knee of their similarity to the class token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tokred import ops
from tokred.feature_view import FeatureView
from tokred.methods.features import FeatureMethod, keep_patches, top_patches
from tokred.methods.registry import register
from tokred.token_map import TokenMap


@register("sms")
@dataclass(frozen=True, kw_only=True)
class SparsityMeetsSimilarity(FeatureMethod):
    """Keep as many patches as the curve of their similarities asks for (arXiv 2409.01162, the stage before the model).

    The cosines of the patch features to the class feature, sorted, form a long-tailed curve; patches up to its
    inflection stay. How many depends on the image; the paper reports 22 % on average. No code was released. Our reading
    of "inflection": with both axes scaled to [0, 1], the point of the curve that lies furthest, vertically, from the
    chord between its ends. A flat curve has none, and all stay. The knee is found per partition, among the patches that
    are no letterbox padding. Encoders without class token: the mean of the patches takes its place. The second stage,
    inside the language model, is ``sms_text``.

    Attributes:
        keep: an upper bound.
    """

    paper: ClassVar[str] = "arXiv 2409.01162"
    reads_attention: ClassVar[bool] = False

    keep: int | float = 1.0

    def zero(self) -> None:
        """No setting keeps everything: the count is the image's."""

    def reduce(self, view: FeatureView) -> TokenMap:
        """Keep what lies in front of the knee."""
        shown = view.layout.shown
        score = similarity(view, shown)
        counts = knee(score, shown).clamp(max=self.per_partition(view.layout))
        return keep_patches(view.layout, top_patches(score, counts), self.newlines)


def similarity(view: FeatureView, shown: Tensor) -> Tensor:
    """[P, N] cosine of every patch with the class feature; minus infinity for padding."""
    patches = view.patches.float()
    if view.has_class_feature:
        summary = view.class_feature.float()
    else:
        summary = (patches * shown.unsqueeze(2)).sum(dim=1) / shown.sum(dim=1, keepdim=True).clamp(min=1)
    return F.cosine_similarity(patches, summary.unsqueeze(1), dim=2).masked_fill(~shown, -torch.inf)


def knee(score: Tensor, real: Tensor) -> Tensor:
    """How many scores lie up to the knee of their sorted curve.

    Args:
        score: [P, N].
        real: [P, N] bool, false for what is no part of the curve and scores minus infinity.

    Returns:
        [P] int64, from 1 to the number of real scores; all of them for a flat curve.
    """
    counts = real.sum(dim=1, keepdim=True)
    curve = score.gather(1, ops.rank_descending(score))
    place = torch.arange(score.shape[1], device=score.device).expand_as(score)
    first, last = curve[:, :1], curve.gather(1, (counts - 1).clamp(min=0))
    scaled = (curve - last) / (first - last)
    chord = 1 - place / (counts - 1).clamp(min=1)
    distance = (scaled - chord).abs().masked_fill(place >= counts, -1)
    flat = ~(first > last).squeeze(1)
    return torch.where(flat, counts.squeeze(1), distance.argmax(dim=1) + 1)
