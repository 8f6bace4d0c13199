"""Scenes of one to three things on a noisy ground, drawn from a seed, with captions that tell everything about them.

A thing has a shape, a color, a size, a texture and one of nine places, no two things of a scene the same place. Each
scene has two captions, with the things in an order drawn anew: "a large striped red circle at the top left and a small
blue ring at the center", "at the center a small blue ring and at the top left a large striped red circle".
"""

from functools import lru_cache

import torch
from torch import Tensor

from tokred.data.captions import CaptionedImages
from tokred.data.tensors import TensorImages, Transform
from tokred.errors import DataError

SHAPES = ("circle", "square", "triangle", "ring", "cross")
COLORS = {
    "red": (0.85, 0.12, 0.12), "green": (0.10, 0.65, 0.20), "blue": (0.12, 0.25, 0.90), "yellow": (0.95, 0.88, 0.15),
    "purple": (0.60, 0.15, 0.75), "orange": (0.98, 0.55, 0.08), "white": (0.97, 0.97, 0.97),
    "black": (0.04, 0.04, 0.04),
}  # fmt: skip
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")  # plain is not said
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
WORDS = (
    "a", "and", "at", "the", "top", "bottom", "left", "right", "center", *SIZES, *TEXTURES[1:], *COLORS, *SHAPES,
)  # fmt: skip
MOST = 3  # things of a scene
SIDE = 48
SPLITS = {"train": 30_000, "test": 1_000}
CLASSES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)


@lru_cache(maxsize=2)
def scenes(split: str = "test") -> CaptionedImages:
    """Return one split: 30,000 scenes to train, 1,000 to test, uint8 [3, 48, 48]; one, two, three things as often.

    >>> tuple(scenes("test").images.shape)
    (1000, 3, 48, 48)
    """
    return draw_scenes(_pictures(split), seed=tuple(SPLITS).index(split))


def single_shapes(split: str = "test", transform: Transform | None = None) -> TensorImages:
    """Return scenes of one thing; the label is its color and shape, one of 40. None of them is one of :func:`scenes`.

    >>> single_shapes().classes[:2]
    ('red circle', 'red square')
    """
    things = draw_things(_pictures(split), seed=10 + tuple(SPLITS).index(split), most=1)
    labels = things[:, 0, 1] * len(SHAPES) + things[:, 0, 0]
    return TensorImages(_paint_all(things, seed=10), labels, CLASSES, transform)


def draw_scenes(pictures: int, seed: int = 0, most: int = MOST) -> CaptionedImages:
    """Return so many scenes of up to ``most`` things."""
    things = draw_things(pictures, seed, most)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.rand(pictures, 2, most, generator=generator).argsort(-1)
    captions = []
    for own, (first, second) in zip(things.tolist(), orders.tolist(), strict=True):
        known = [_tell(thing) for thing in own if thing[0] >= 0]
        once, again = ([known[i] for i in order if i < len(known)] for order in (first, second))
        captions.append((
            " and ".join(f"{thing} {place}" for thing, place in once),
            " and ".join(f"{place} {thing}" for thing, place in again),
        ))  # fmt: skip
    return CaptionedImages(_paint_all(things, seed), captions)


def draw_things(pictures: int, seed: int, most: int = MOST) -> Tensor:
    """Return shape, color, size, texture and place of every thing, int64 [N, most, 5]; -1 where there is none."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(1, most + 1, (pictures,), generator=generator)
    kinds = [torch.randint(len(kind), (pictures, most), generator=generator)
             for kind in (SHAPES, COLORS, SIZES, TEXTURES)]  # fmt: skip
    place = torch.rand(pictures, len(PLACES), generator=generator).argsort(-1)[:, :most]
    things = torch.stack([*kinds, place], -1)
    return things.masked_fill((torch.arange(most) >= count[:, None])[..., None], -1)


def _pictures(split: str) -> int:
    if split not in SPLITS:
        raise DataError(f"scenes have no split {split!r}. They have: {', '.join(SPLITS)}.")
    return SPLITS[split]


def _tell(thing: list[int]) -> tuple[str, str]:
    shape, color, size, texture, place = thing
    words = (SIZES[size], TEXTURES[texture] if texture else "", tuple(COLORS)[color], SHAPES[shape])
    return "a " + " ".join(filter(None, words)), f"at the {PLACES[place]}"


def _paint_all(things: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1_000)
    return torch.cat([_paint(part, generator) for part in things.split(250)])


def _paint(things: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures, uint8 [B, 3, H, W]; edges are smooth."""
    B, most, _ = things.shape
    axis = torch.arange(SIDE) + 0.5
    y, x = axis[:, None], axis[None, :]  # [H, 1], [1, W]
    ends, angle, noise = (
        torch.rand(B, 2, 1, 1, generator=generator),
        2 * torch.pi * torch.rand(B, 1, 1, generator=generator),
        torch.randn(B, SIDE, SIDE, generator=generator),
    )
    chance = torch.rand(B, most, 8, generator=generator)
    along = 0.5 + ((x / SIDE - 0.5) * angle.cos() + (y / SIDE - 0.5) * angle.sin()) / 2**0.5
    ends = 0.35 + 0.25 * ends
    ground = ends[:, 0] + (ends[:, 1] - ends[:, 0]) * along + 0.02 * noise  # [B, H, W]
    images = ground[:, None].repeat(1, 3, 1, 1)
    table = torch.tensor(list(COLORS.values()))
    for number in range(most):
        there = (things[:, number, 0] >= 0).nonzero()[:, 0]
        shape, color, size, texture, place = things[there, number].unbind(-1)
        random = chance[there, number]
        radius = (torch.tensor([4.2, 6.9])[size] + 0.5 * (random[:, 0] - 0.5))[:, None, None]
        middle = torch.stack([place % 3, place // 3], -1) * (SIDE // 3) + SIDE / 6 + 2 * (random[:, 1:3] - 0.5)
        turn = (0.5 * (random[:, 3] - 0.5))[:, None, None]
        px, py = x - middle[:, 0, None, None], y - middle[:, 1, None, None]
        px, py = px * turn.cos() + py * turn.sin(), py * turn.cos() - px * turn.sin()
        cover = (0.5 - _outside(px, py, radius, shape)).clamp(0, 1) * _texture(px, py, texture)
        shade = (table[color] + 0.08 * (random[:, 4:7] - 0.5))[:, :, None, None]
        images[there] = images[there].lerp(shade.expand(-1, -1, SIDE, SIDE), cover[:, None])
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _outside(px: Tensor, py: Tensor, radius: Tensor, shape: Tensor) -> Tensor:
    """How many pixels a pixel lies outside of its shape, [B, H, W]; negative inside."""
    far = (px**2 + py**2).sqrt()
    ax, ay = px.abs(), py.abs()
    long, short = torch.maximum(ax, ay), torch.minimum(ax, ay)
    distances = (
        far - radius,
        long - 0.85 * radius,
        torch.maximum(3**0.5 / 2 * ax - py / 2, py) - 0.6 * radius,
        (far - 0.75 * radius).abs() - 0.25 * radius,
        torch.maximum(long - radius, short - 0.32 * radius),
    )
    choice = shape[:, None, None]
    return torch.stack(distances).gather(0, choice[None].expand(1, *far.shape))[0]


def _texture(px: Tensor, py: Tensor, texture: Tensor) -> Tensor:
    """How much of the color a pixel takes, [B, H, W]: all, every other stripe, or dots left out."""
    wave = 2 * torch.pi / 4
    stripes = 0.6 + 0.4 * (2 * (wave * py).cos()).clamp(-1, 1)
    dots = 1 - 0.8 * (2 * (wave * px).cos() * (wave * py).cos() - 0.2).clamp(0, 1)
    choice = texture[:, None, None]
    return torch.where(choice == 1, stripes, torch.where(choice == 2, dots, 1.0))
