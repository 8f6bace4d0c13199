"""How near a tokenizer's pictures are to the originals, for any number of tokens."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokred.extra import need
from tokred.tokenizers.flextok.model import FlexTok


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio [B] in dB between pictures in [-1, 1].

    >>> psnr(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.2)).item()
    20.0
    """
    error = (images.float() - others.float()).square().flatten(1).mean(1) / 4
    return -10 * torch.log10(error.clamp(min=1e-10))


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Return the structural similarity [B] between pictures in [-1, 1], by torchmetrics."""
    measure = need("torchmetrics.functional.image", purpose="SSIM needs").structural_similarity_index_measure
    clipped = (images.float().clamp(-1, 1), others.float().clamp(-1, 1))
    return measure(*clipped, data_range=2.0, reduction="none")


@torch.no_grad()
def curve(model: FlexTok, images: Tensor, counts: Sequence[int], batch_size: int = 125) -> dict[int, float]:
    """Return the mean PSNR of the one-step estimate from the first k tokens, for every k of ``counts``.

    Every picture has the same noise at every k, drawn from seed 0.

    Args:
        model: a FlexTok.
        images: [N, C, H, W], bytes or floats in [-1, 1].
        counts: numbers of tokens.
        batch_size: pictures at a time.
    """
    chance = torch.Generator().manual_seed(0)
    total = dict.fromkeys(counts, 0.0)
    for part in images.split(batch_size):
        clean, codes = model.prepare(part), model.encode(part)
        noise = model.draw_noise(len(part), chance)
        for k in counts:
            total[k] += float(psnr(model.estimate(codes[:, :k], noise=noise), clean).sum())
    return {k: value / max(1, len(images)) for k, value in total.items()}


def mean_image_psnr(known: Tensor, images: Tensor) -> float:
    """Return the mean PSNR of guessing the mean of ``known`` bytes [N, C, H, W] for every one of ``images``."""
    known, images = (x.float() / 127.5 - 1 for x in (known, images))
    return float(psnr(images, known.mean(0, keepdim=True).expand_as(images)).mean())


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Return the Frechet distance between Gaussians fitted to two sets of features [N, D], [M, D], by torchmetrics."""
    given = nn.Identity()  # features are had already
    given.num_features = features.shape[1]  # type: ignore[assignment]
    measure = need("torchmetrics.image.fid", purpose="The Frechet distance needs").FrechetInceptionDistance
    distance = measure(feature=given)
    distance.update(features.cpu(), real=True)
    distance.update(others.cpu(), real=False)
    return float(distance.compute())


def bits(model: Any, tokens: int) -> float:
    """Return how many bits so many tokens are."""
    return tokens * math.log2(model.vocabulary)
