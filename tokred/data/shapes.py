"""Pictures of one to eight coloured shapes on a coloured ground, drawn from a seed; the label is how many there are."""

from functools import lru_cache

import torch
from torch import Tensor

from tokred.data.tensors import TensorImages, Transform
from tokred.errors import DataError

MOST = 8
SIDE = 64
SIZES = {"train": 10_000, "test": 1_000}


def shapes(split: str = "test", transform: Transform | None = None) -> TensorImages:
    """Return one split: 10,000 pictures to train, 1,000 to test, uint8 [3, 64, 64]; every count is as likely.

    >>> images = shapes("test").images
    >>> tuple(images.shape)
    (1000, 3, 64, 64)
    """
    if split not in SIZES:
        raise DataError(f"shapes has no split {split!r}. It has: {', '.join(SIZES)}.")
    images, labels = _split(split)
    return TensorImages(images, labels, tuple(str(count) for count in range(1, MOST + 1)), transform)


def draw_shapes(pictures: int, seed: int = 0, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Return so many pictures uint8 [N, 3, side, side] and the number of shapes less one, int64 [N].

    The ground goes evenly from one colour to another, in any direction. Later circles, squares and triangles lie over
    earlier ones; edges are smooth.
    """
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(1, MOST + 1, (pictures,), generator=generator)
    ground = torch.rand(pictures, 7, generator=generator)
    numbers = torch.rand(pictures, MOST, 8, generator=generator)
    parts = zip(count.split(100), ground.split(100), numbers.split(100), strict=True)
    return torch.cat([_paint(*part, side) for part in parts]), count - 1


@lru_cache(maxsize=2)
def _split(split: str) -> tuple[Tensor, Tensor]:
    return draw_shapes(SIZES[split], seed=tuple(SIZES).index(split))


def _paint(count: Tensor, ground: Tensor, numbers: Tensor, side: int) -> Tensor:
    axis = (torch.arange(side) + 0.5) / side - 0.5
    y, x = axis[:, None], axis[None, :]  # [H, 1], [1, W]
    angle = 2 * torch.pi * ground[:, 6, None, None]
    part = (0.5 + (x * angle.cos() + y * angle.sin()) / 2**0.5)[:, None]  # [B, 1, H, W]
    first, last = ground[:, :3, None, None], ground[:, 3:6, None, None]
    images = first + (last - first) * part
    for place in range(MOST):
        more = (count > place).nonzero()[:, 0]
        kind, left, top, size, turn, *colour = numbers[more, place, :, None, None].unbind(1)  # each [b, 1, 1]
        radius = 0.08 + 0.18 * size
        turn = 2 * torch.pi * turn
        px, py = x - 0.8 * (left - 0.5), y - 0.8 * (top - 0.5)
        px, py = px * turn.cos() + py * turn.sin(), py * turn.cos() - px * turn.sin()
        circle = (px**2 + py**2).sqrt() - radius
        square = torch.maximum(px.abs(), py.abs()) - 0.85 * radius
        triangle = torch.maximum(3**0.5 / 2 * px.abs() - py / 2, py) - 0.55 * radius
        outside = torch.where(kind < 1 / 3, circle, torch.where(kind < 2 / 3, square, triangle)) * side  # in pixels
        cover = (0.5 - outside).clamp(0, 1)[:, None]  # [b, 1, H, W]
        images[more] = images[more].lerp(torch.stack(colour, 1).expand(-1, -1, side, side), cover)
    return (images * 255).round().to(torch.uint8)
