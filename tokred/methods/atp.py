"""ATP-LLaVA: learned thresholds decide, prompt by prompt, which visual tokens go on through the language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokred.decoder_view import DecoderView
from tokred.errors import ConfigError
from tokred.methods.decoder import DecoderMethod, check_layers, scaled_layers
from tokred.methods.parts import load_parts
from tokred.methods.registry import register
from tokred.token_map import TokenMap

_SIZES = "atp.sizes"
_LEAST = 1e-30  # of a soft mask, so that its logarithm is finite


class ATPModule(nn.Module):
    """Two thresholds from two mean scores: ``z = W_z m + b_z``, ``theta = sigmoid(w z + b)`` (arXiv 2412.00447).

    Whether there is a non-linearity between the two maps we could not verify; there is none. At the start the hidden
    units pass on the two means in turn, and both heads are zero: every threshold is 1/2, whatever the prompt.

    Args:
        dim: hidden width, that of the language model.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, dim)
        self.redundant = nn.Linear(dim, 1)
        self.spatial = nn.Linear(dim, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.hidden.weight[0::2, 0] = dim**-0.5
            self.hidden.weight[1::2, 1] = dim**-0.5

    def forward(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """Thresholds of the redundant and of the spatial score, [B, 1] float32 each, for mean scores [B, 2]."""
        z = _linear(self.hidden, means.float())
        return _linear(self.redundant, z).sigmoid(), _linear(self.spatial, z).sigmoid()


class ATPScores(NamedTuple):
    """What decides, of visual tokens; the values of all others mean nothing.

    Attributes:
        self_: [B, T] mean product of a token's query with all visual keys.
        cross: [B, T] attention from the text.
        redundant: [B, T] the mean of both.
        spatial: [B, T] from the token's place.
        theta_r: [B, 1] threshold of the redundant score.
        theta_s: [B, 1] threshold of the spatial score.
    """

    self_: Tensor
    cross: Tensor
    redundant: Tensor
    spatial: Tensor
    theta_r: Tensor
    theta_s: Tensor


class ATPLoss(NamedTuple):
    """The terms beside the language loss, scalars.

    Attributes:
        depth: share of tokens after every module, times its layer, summed.
        target: distance of the mean number of tokens from the target.
        total: their weighted sum.
    """

    depth: Tensor
    target: Tensor
    total: Tensor


@register("atp")
@dataclass(frozen=True, kw_only=True)
class ATP(DecoderMethod):
    """Adaptive token pruning (Ye et al., ATP-LLaVA, arXiv 2412.00447).

    Every module has two thresholds of its own, computed for each prompt (instance-wise): a visual token stays if it
    matters to the other tokens, or if it belongs to a coarse enough uniform sample of the image. In training all tokens
    stay and later layers see less of some; in inference what is below both thresholds is dropped. If none is above, the
    one with the highest redundant score stays.

    There is no official code, and the equations come from secondary sources. Not verified: that the self score is
    made of products before the softmax (which can be far outside of the range of a threshold: see ``scaling``) and
    without the causal mask; how training applies the mask; how the thresholds depend on the means. Our decisions: the
    text is the one behind the last image; with several sampling rates a token gets the highest of its scores; all
    images of a prompt share the thresholds; what has no place in its image (newlines, images that are no square and
    have no known layout) has no spatial score. Positions stay; the paper adds a 2-D rotary part of which we know no
    detail.

    Attributes:
        layers: at whose entry tokens are dropped, by the attention of the layer before; by default 4, 14 and 24 of 32,
            scaled to other depths.
        sampling_rates: densities of the uniform samples, in (0, 1]. The paper's are not known; with a single one the
            spatial threshold is all or nothing.
        lambda_sample: the spatial score of a sample of rate R is ``1 - lambda_sample R``, 0 if that is negative.
        temperature: of the soft mask, a factor.
        scaling: ``"unit"`` stretches both parts of the redundant score to [0, 1] over the prompt's visual tokens, so
            that thresholds in (0, 1) can tell them apart; ``"none"`` as the equations have it.
        per_sample: false: thresholds from the mean over the batch, so that they depend on the layer only.
        weights: a safetensors file with the learned modules; without, they are what they are before training.
    """

    paper: ClassVar[str] = "arXiv 2412.00447"
    learned: ClassVar[bool] = True

    layers: tuple[int, ...] | None = None
    sampling_rates: tuple[float, ...] = (1 / 4, 1 / 9, 1 / 16)
    lambda_sample: float = 3.0
    temperature: float = 10.0
    scaling: Literal["none", "unit"] = "none"
    per_sample: bool = True
    weights: str | Path | None = None

    def check(self) -> None:
        """Check all knobs."""
        check_layers(self.layers or ())
        wrong = [rate for rate in self.sampling_rates if not 0 < rate <= 1]
        if wrong:
            raise ValueError(f"sampling_rates={self.sampling_rates}: {wrong} do not lie in (0, 1].")
        if self.lambda_sample < 0 or self.temperature <= 0:
            raise ValueError(
                f"lambda_sample={self.lambda_sample}, temperature={self.temperature}: at least 0, and above 0."
            )
        if self.scaling not in ("none", "unit"):
            raise ValueError(f"scaling={self.scaling!r}: 'none' or 'unit'.")

    def stages(self, depth: int) -> tuple[int, ...]:
        """The layers given, or those of the paper, scaled."""
        layers = scaled_layers((4, 14, 24), 32, depth) if self.layers is None else tuple(self.layers)
        check_layers(layers, depth)
        return layers

    def zero(self) -> Self:
        """A sample of rate 1 with score 1 is above every threshold."""
        return self.with_(sampling_rates=(1.0,), lambda_sample=0.0)

    def modules(self, depth: int, dim: int) -> nn.ModuleDict:
        """A module for every stage, with the learned weights if there are.

        Raises:
            ConfigError: the weights are for other layers or for another width.
        """
        modules = nn.ModuleDict({str(layer): ATPModule(dim) for layer in self.stages(depth)})
        if self.weights is not None:
            load_parts(modules, self.weights, _outline)
        return modules

    def scores(self, view: DecoderView) -> ATPScores:
        """Scores and thresholds; gradients reach the module through the thresholds."""
        if view.module is None:
            raise ConfigError("ATP has learned thresholds; give the view the module of its layer (ATP.modules).")
        self_, cross = self_score(view), cross_score(view)
        means = torch.stack([visual_mean(self_, view.visual), visual_mean(cross, view.visual)], dim=1)
        if not self.per_sample:
            there = view.visual.any(dim=1, keepdim=True)
            means = ((means * there).sum(dim=0) / there.sum().clamp(min=1)).expand_as(means)
        parts = (self_, cross) if self.scaling == "none" else (stretch(self_, view.visual), stretch(cross, view.visual))
        redundant = (parts[0] + parts[1]) / 2
        spatial = spatial_score(*grid_places(view), self.sampling_rates, self.lambda_sample)
        return ATPScores(self_, cross, redundant, spatial, *view.module(means))

    def soften(self, view: DecoderView) -> Tensor:
        """[B, T] in (0, 1], the soft mask of this layer's module alone; 1 for text.

        Our decision for training: masks of several modules are multiplied, and the logarithm of the product is added to
        the logits of the later layers.
        """
        scores = self.scores(view)
        mask = soft_mask(scores.redundant, scores.spatial, scores.theta_r, scores.theta_s, self.temperature)
        return torch.where(view.visual, mask.clamp(min=_LEAST), 1.0)

    def reduce(self, view: DecoderView) -> TokenMap:
        """Keep what is above a threshold, in order; the best by the redundant score where nothing is."""
        scores = self.scores(view)
        above = view.visual & hard_mask(scores.redundant, scores.spatial, scores.theta_r, scores.theta_s)
        keep = torch.where(above.any(dim=1, keepdim=True), above | view.text, view.top(scores.redundant, 1))
        return view.select(keep)


def self_score(view: DecoderView) -> Tensor:
    """[B, T] mean over visual keys and heads of ``q k scale``, before the softmax and without the causal mask.

    The mean of products is the product with the mean key, so that no matrix is needed.
    """
    weight = view.visual.float() / view.visual.sum(dim=1, keepdim=True).clamp(min=1)
    mean_key = weight[:, None, None] @ view.k.float()  # [B, G, 1, D]
    heads = view.q.shape[1]
    mean_key = mean_key.repeat_interleave(heads // view.k.shape[1], dim=1)
    return (view.q.float() @ mean_key.transpose(-1, -2)).squeeze(-1).mean(dim=1) * view.scale


def cross_score(view: DecoderView) -> Tensor:
    """[B, T] attention from the text behind the images, averaged over its tokens and the heads."""
    return view.attention_from(view.instruction).mean(dim=1)


def visual_mean(score: Tensor, visual: Tensor) -> Tensor:
    """[B] mean of ``score`` [B, T] over visual tokens; 0 where there are none."""
    return (score * visual).sum(dim=1) / visual.sum(dim=1).clamp(min=1)


def stretch(score: Tensor, visual: Tensor) -> Tensor:
    """``score`` [B, T] moved and scaled so that visual tokens reach from 0 to 1; 0 where all are alike."""
    low = score.masked_fill(~visual, torch.inf).amin(dim=1, keepdim=True)
    high = score.masked_fill(~visual, -torch.inf).amax(dim=1, keepdim=True)
    width = high - low
    return torch.where(visual & (width > 0), (score - low) / width.clamp(min=torch.finfo(score.dtype).tiny), 0.0)


def spatial_score(row: Tensor, column: Tensor, rates: Sequence[float], lambda_sample: float) -> Tensor:
    """The highest of ``1 - lambda_sample R`` over the uniform samples that a token belongs to, at least 0.

    The sample of rate R has the stride ``round(sqrt(1 / R))`` and starts in the first row and column.

    Args:
        row: [...] int64, -1 for tokens without a place, which belong to samples of stride 1 only.
        column: [...] int64.
        rates: densities of the samples.
        lambda_sample: what the density costs.
    """
    score = torch.zeros(row.shape, device=row.device)
    for rate in rates:
        stride = round(math.sqrt(1 / rate))
        on = (row >= 0) & (row % stride == 0) & (column % stride == 0) if stride > 1 else torch.ones_like(row).bool()
        score = torch.maximum(score, on * max(1 - lambda_sample * rate, 0.0))
    return score


def soft_mask(redundant: Tensor, spatial: Tensor, theta_r: Tensor, theta_s: Tensor, temperature: float) -> Tensor:
    """``max(sigmoid((S_red - theta_r) T), sigmoid((S_spatial - theta_s) T))``, [B, T]."""
    return torch.maximum(((redundant - theta_r) * temperature).sigmoid(), ((spatial - theta_s) * temperature).sigmoid())


def hard_mask(redundant: Tensor, spatial: Tensor, theta_r: Tensor, theta_s: Tensor) -> Tensor:
    """[B, T] bool, whether a score is above its threshold: the soft mask above 1/2."""
    return (redundant > theta_r) | (spatial > theta_s)


def grid_places(view: DecoderView) -> tuple[Tensor, Tensor]:
    """Row and column [B, T] of every visual token in its partition; -1 where they are not known.

    They come from the layouts. Without them the tokens of an image that are a square number are taken for a square.
    """
    image, patch = view.image.clamp(min=0), view.patch.clamp(min=0)
    size = _image_sizes(view).gather(1, image)
    side = size.double().sqrt().round().long().clamp(min=1)
    known = view.visual & (side * side == size)
    row, column = (torch.where(known, place, -1) for place in (patch // side, patch % side))
    for prompt, layouts in enumerate(view.layouts):
        if not layouts:
            continue
        ends = torch.tensor([layout.num_tokens for layout in layouts], device=image.device).cumsum(0)
        starts = torch.nn.functional.pad(ends[:-1], (1, 0))
        index = torch.where(view.visual[prompt], starts[image[prompt].clamp(max=len(layouts) - 1)] + patch[prompt], 0)
        for place, table in ((row, [y.row for y in layouts]), (column, [y.column for y in layouts])):
            place[prompt] = torch.where(view.visual[prompt], torch.cat(table).to(image.device)[index], -1)
    return row, column


def atp_loss(
    soft_masks: Sequence[Tensor],
    layers: Sequence[int],
    num_visual: int | Tensor,
    target: float,
    lambda_atp: float = 0.05,
    lambda_target: float = 0.2,
) -> ATPLoss:
    """``lambda_atp sum_l (kept_l / N) l + lambda_target |mean_l kept_l - target|``, to be added to the language loss.

    ``kept_l`` is the mean over the batch of the sum of the mask behind the module of layer l. Prompts without visual
    tokens do not count. To count what is really left behind several modules, give the products of the masks.

    Args:
        soft_masks: for every module [B, N], 0 for what is no visual token.
        layers: of the modules.
        num_visual: N, for all prompts or [B].
        target: tokens that should be left, averaged over the modules.
        lambda_atp: weight of the first term.
        lambda_target: weight of the second.
    """
    kept = torch.stack([mask.float().sum(dim=1) for mask in soft_masks])  # [modules, B]
    number = torch.as_tensor(num_visual, device=kept.device).expand(kept.shape[1])
    there = (number > 0).float()
    prompts = there.sum().clamp(min=1)
    share = (kept / number.clamp(min=1) * there).sum(dim=1) / prompts
    depth = (share * torch.tensor(list(layers), dtype=share.dtype, device=share.device)).sum()
    off = ((kept * there).sum(dim=1) / prompts).mean().sub(target).abs()
    return ATPLoss(depth, off, lambda_atp * depth + lambda_target * off)


def _image_sizes(view: DecoderView) -> Tensor:
    """[B, images] visual tokens of every image, counted at the first stage, where all are there."""
    if _SIZES not in view.memory:
        images = max(int(view.image.max()) + 1, 1)
        size = torch.zeros(view.image.shape[0], images, dtype=torch.int64, device=view.image.device)
        count = torch.where(view.visual, view.patch + 1, 0)
        view.memory[_SIZES] = size.scatter_reduce(1, view.image.clamp(min=0), count, "amax")
    return view.memory[_SIZES]


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """In float32, whatever the precision of the model."""
    return F.linear(x, layer.weight.float(), layer.bias.float())


def _outline(state: dict[str, Tensor]) -> str:
    layers = sorted({name.split(".")[0] for name in state}, key=lambda name: (len(name), name))
    width = {value.shape[0] for name, value in state.items() if name.endswith("hidden.bias")}
    return f"modules for the layers {', '.join(layers)} of width {', '.join(map(str, sorted(width))) or 'unknown'}"
