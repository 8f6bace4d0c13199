"""A dataset that lies in memory as one tensor of bytes, and how bytes become a normalised batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

Transform = Callable[[Any], Any]


class TensorImages(Dataset[tuple[Any, int]]):
    """Pictures [N, C, H, W] as bytes with their labels [N] and class names."""

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str], transform: Transform | None = None):
        self.images, self.labels, self.classes, self.transform = images, labels, tuple(classes), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), int(self.labels[index])


class Normalize:
    """Turn bytes [..., C, H, W] into float32 with the given mean and standard deviation per channel.

    >>> Normalize((0.5,), (0.5,))(torch.full((1, 2, 2), 255, dtype=torch.uint8)).max().item()
    1.0
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the normalised pictures."""
        return (images.float() / 255 - self.mean) / self.std


def augment(images: Tensor, generator: torch.Generator, *, padding: int = 2, flip: bool = True) -> Tensor:
    """Return the batch [B, C, H, W] shifted by up to ``padding`` pixels (zeros come in) and mirrored at random.

    Every picture gets its own shift and its own coin.
    """
    B, _, H, W = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    # Everything is drawn, used or not, so that what a generator gives later does not hang on the settings.
    top, left = torch.randint(2 * padding + 1, (2, B), generator=generator)
    rows = (top[:, None] + torch.arange(H))[:, None, :, None]  # [B, 1, H, 1]
    columns = (left[:, None] + torch.arange(W))[:, None, None, :]  # [B, 1, 1, W]
    channels = torch.arange(images.shape[1])[None, :, None, None]
    images = padded[torch.arange(B)[:, None, None, None], channels, rows, columns]
    coin = torch.rand(B, generator=generator) < 0.5
    if flip:
        images = torch.where(coin[:, None, None, None], images.flip(-1), images)
    return images
