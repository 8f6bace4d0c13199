"""Pictures of any size and mode as square ones of one size."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad


def square(picture: Image.Image, side: int, channels: int) -> Tensor:
    """Return the middle of a picture as uint8 [C, side, side], its shorter side resized to ``side``."""
    picture = picture.convert("L" if channels == 1 else "RGB")
    width, height = picture.size
    scale = side / min(width, height)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    array = np.array(picture.crop((left, top, left + side, top + side)))
    return torch.from_numpy(array.reshape(side, side, channels)).permute(2, 0, 1).contiguous()


def fit(images: Tensor, side: int, channels: int) -> Tensor:
    """Return pictures uint8 [N, C, H, W] with so many channels at side x side: smaller ones get a dark border.

    >>> fit(torch.ones(1, 1, 28, 28, dtype=torch.uint8), 32, 1).sum().item()
    784
    """
    if images.shape[1] != channels:
        images = images.expand(-1, channels, -1, -1) if images.shape[1] == 1 else grey(images)
    height, width = images.shape[-2:]
    if max(height, width) <= side:
        top, left = (side - height) // 2, (side - width) // 2
        return pad(images, (left, side - width - left, top, side - height - top))
    small = interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


class Square:
    """A transform from a PIL picture, or bytes [C, H, W], to bytes [C, side, side]; can be sent to other processes."""

    def __init__(self, side: int, channels: int):
        self.side, self.channels = side, channels

    def __call__(self, picture: Image.Image | Tensor) -> Tensor:
        """Return the square picture."""
        if isinstance(picture, Tensor):
            return fit(picture[None], self.side, self.channels)[0]
        return square(picture, self.side, self.channels)


def grey(images: Tensor) -> Tensor:
    """Return the brightness [N, 1, H, W] of pictures uint8 [N, 3, H, W]."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).round().to(torch.uint8)
