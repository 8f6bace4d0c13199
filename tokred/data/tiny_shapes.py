"""Pictures of one shape on a plain ground, drawn anew so that the shape is tiny, somewhere, and all of it grainy.

What is left of such a shape in a smaller copy of the picture is a blob: to tell it, the pixels are needed.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tokred.data.vqa import Picture, VQADataset

SIDES = (7, 11)
"""Least and greatest height and width of a shape in pixels; they are drawn independently."""
GRAIN = 10.0
"""Standard deviation of the noise on every value, of 255."""
MARGIN = 4
"""Pixels around every shape."""
_DIFFERENT = 40  # from the ground, of 255


def with_tiny_shapes(dataset: VQADataset, *, seed: int = 0, times: int = 1) -> VQADataset:
    """Return the same questions about pictures whose one shape is tiny; picture and seed decide all that is drawn.

    Args:
        dataset: P pictures of one image [3, H, W] with one shape on a plain ground, as easy-VQA has them.
        times: how often each is drawn, every time anew: pictures i, i + P, i + 2 P, ... are of picture i.
    """
    count = len(dataset.pictures)
    questions = [
        replace(question, picture=question.picture + turn * count)
        for turn in range(times)
        for question in dataset.questions
    ]
    return VQADataset(_TinyShapes(dataset.pictures, seed, times), questions)


class _TinyShapes(Sequence[Picture]):
    """Pictures drawn anew when asked for."""

    def __init__(self, pictures: Sequence[Picture], seed: int, times: int):
        self.pictures, self.seed, self.times = pictures, seed, times

    def __len__(self) -> int:
        return self.times * len(self.pictures)

    def __getitem__(self, index: Any) -> Any:
        (image,) = self.pictures[index % len(self.pictures)]
        return (_draw(image, np.random.default_rng((self.seed, index))),)


def _draw(image: Tensor, chance: np.random.Generator) -> Tensor:
    ground = image.flatten(1).median(dim=1).values.float()[:, None, None]
    shape = _around(image.float(), (image - ground).abs().amax(0) > _DIFFERENT)
    height, width = (int(side) for side in chance.integers(SIDES[0], SIDES[1] + 1, size=2))
    H, W = image.shape[1:]
    top = int(chance.integers(MARGIN, H - MARGIN - height + 1))
    left = int(chance.integers(MARGIN, W - MARGIN - width + 1))
    drawn = ground.expand(-1, H, W).clone()
    small = interpolate(shape[None], (height, width), mode="bicubic", antialias=True)
    drawn[:, top : top + height, left : left + width] = small[0]
    grain = torch.from_numpy(chance.normal(0, GRAIN, (3, H, W)))
    return (drawn + grain).round().clamp(0, 255).to(torch.uint8)


def _around(image: Tensor, shows: Tensor) -> Tensor:
    rows, columns = (shows.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    return image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
