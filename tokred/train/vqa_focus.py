"""A cheap start for a vision tower: only the patches around what a picture shows, and one token for all of it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

DIFFERENT = 0.3  # from the background, in normalised units


def find_shown(pixels: Tensor, patch: int) -> Tensor:
    """Return which patches hold something that differs from the background, bool [B, S, S].

    Means of two by two pixels are compared, so that grain is not taken for something.

    Args:
        pixels: normalised pictures [B, 3, H, H]. The background is the median of each channel.
        patch: side of a patch in pixels, an even number.
    """
    median = pixels.flatten(2).median(-1).values[:, :, None, None]
    differs = (avg_pool2d(pixels, 2) - median).abs().amax(1) > DIFFERENT  # [B, H / 2, H / 2]
    patch = patch // 2
    return differs.unfold(1, patch, patch).unfold(2, patch, patch).any(-1).any(-1)


def find_window(pixels: Tensor, patch: int, window: int) -> tuple[Tensor, Tensor]:
    """Return the patches [B, W * W] of the window around what differs from the background, and which of them differ.

    Where nothing differs, the window is in a corner.

    Args:
        pixels: normalised pictures [B, 3, H, H].
        patch: side of a patch in pixels.
        window: side W of the window in patches.
    """
    B = len(pixels)
    differs = find_shown(pixels, patch)
    side = differs.shape[-1]
    places = torch.arange(side, device=pixels.device)
    count = differs.sum((1, 2)).clamp(min=1)
    spread = torch.arange(window, device=pixels.device)
    rows, columns = (
        ((differs.sum(axis) * places).sum(1) / count - (window - 1) / 2).round().long().clamp(0, side - window)
        for axis in (2, 1)
    )
    index = (rows[:, None] + spread)[:, :, None] * side + (columns[:, None] + spread)[:, None]
    index = index.view(B, -1)
    return index, differs.view(B, -1).gather(1, index)


def focused_features(model: Any, pixels: Tensor, patch: int, window: int) -> Tensor:
    """Return one projected token a picture [B, 1, D]: the mean over what differs, the tower seeing only the window.

    Args:
        model: a LLaVA or LLaVA-NeXT of transformers without its head, with a CLIP tower.
        pixels: normalised pictures of one tile [B, 3, H, H].
    """
    index, differs = find_window(pixels, patch, window)

    def keep(module: Any, args: Any, embedded: Tensor) -> Tensor:
        """Leave the class token and the window."""
        rows = index[:, :, None].expand(-1, -1, embedded.shape[-1])
        return torch.cat([embedded[:, :1], embedded[:, 1:].gather(1, rows)], 1)

    tower = model.vision_tower
    hook = getattr(tower, "vision_model", tower).embeddings.register_forward_hook(keep)
    try:
        seen = tower(pixels, output_hidden_states=True).hidden_states[model.config.vision_feature_layer]
    finally:
        hook.remove()
    features = model.multi_modal_projector(seen[:, 1:])
    share = differs / differs.sum(1, keepdim=True).clamp(min=1)  # [B, W * W]
    return (features * share[:, :, None].to(features.dtype)).sum(1, keepdim=True)
