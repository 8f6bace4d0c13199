"""Pictures of a token reduction: merged regions outlined in their mean colour, dropped patches dimmed."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

_SMALLEST_SIDE = 224
_DIMMED = 0.25


def draw_overlay(images: Tensor, slots: Tensor, grid: tuple[int, int]) -> list[Image.Image]:
    """Draw, for every image, which patches were kept, merged and dropped.

    A merged region is filled with its mean colour and outlined; dropped patches are dimmed to a quarter; patches that
    stand alone are shown as they are.

    Args:
        images: [B, C, H, W] of any value range, C 1 or 3; each image is stretched to its own range.
        slots: [B, rows * columns] slot of every patch, -1 for dropped ones.
        grid: rows and columns of the patches.

    Returns:
        B pictures, the shorter side at least 224 pixels.

    Raises:
        ValueError: the number of images and of rows in ``slots`` differ.
    """
    if len(slots) != len(images):
        raise ValueError(f"{len(images)} images were given, the traced forward saw {len(slots)}.")
    rows, columns = grid
    pictures = _pictures(images, rows, columns)
    shown = slots.cpu().reshape(-1, rows, columns).numpy()
    return [_draw(picture, slot) for picture, slot in zip(pictures, shown, strict=True)]


def _pictures(images: Tensor, rows: int, columns: int) -> np.ndarray:
    """[B, H, W, 3] uint8 pictures whose sides are multiples of the grid."""
    x = images.detach().float().cpu()
    low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
    x = (x - low) / (high - low).clamp(min=1e-6)
    cell = max(-(-_SMALLEST_SIDE // min(rows, columns)), x.shape[2] // rows)
    x = F.interpolate(x, size=(rows * cell, columns * cell), mode="nearest")
    x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, :3]
    return (x.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def _draw(picture: np.ndarray, slot: np.ndarray) -> Image.Image:
    rows = slot.shape[0]
    cell = picture.shape[0] // rows
    pixel_slot = slot.repeat(cell, axis=0).repeat(cell, axis=1)
    result = picture.astype(np.float32)
    result[pixel_slot < 0] *= _DIMMED
    groups, counts = np.unique(slot[slot >= 0], return_counts=True)
    for group in groups[counts > 1]:
        region = pixel_slot == group
        result[region] = picture[region].mean(axis=0)
    image = Image.fromarray(result.round().astype(np.uint8))
    _outline(ImageDraw.Draw(image), slot, cell, {int(g) for g in groups[counts > 1]})
    return image


def _outline(draw: ImageDraw.ImageDraw, slot: np.ndarray, cell: int, merged: set[int]) -> None:
    """Draw the border of every merged region, dark on light so that it shows on any colour."""
    rows, columns = slot.shape
    for row in range(rows):
        for column in range(columns):
            here = int(slot[row, column])
            if here not in merged:
                continue
            x, y = column * cell, row * cell
            edges = (
                (row == 0 or slot[row - 1, column] != here, (x, y, x + cell - 1, y)),
                (row == rows - 1 or slot[row + 1, column] != here, (x, y + cell - 1, x + cell - 1, y + cell - 1)),
                (column == 0 or slot[row, column - 1] != here, (x, y, x, y + cell - 1)),
                (column == columns - 1 or slot[row, column + 1] != here, (x + cell - 1, y, x + cell - 1, y + cell - 1)),
            )
            for is_border, line in edges:
                if is_border:
                    draw.line(line, fill=(255, 196, 0), width=1)
