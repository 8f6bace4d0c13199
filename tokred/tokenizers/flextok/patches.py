"""Pictures as rows of patch vectors and back: row in the patch, column in the patch, channel (fastest)."""

from torch import Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """Return the patch vectors [B, N, patch * patch * C] of images [B, C, H, W], rows of patches first.

    >>> import torch
    >>> patchify(torch.arange(8.0).view(1, 2, 2, 2), 2)
    tensor([[[0., 4., 1., 5., 2., 6., 3., 7.]]])
    """
    B, C, H, W = images.shape
    x = images.reshape(B, C, H // patch, patch, W // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // patch) * (W // patch), patch * patch * C)


def unpatchify(patches: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Return the images [B, C, height * patch, width * patch] of a grid of patch vectors."""
    B = patches.shape[0]
    x = patches.reshape(B, height, width, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)  # [B, C, h, p, w, p]
    return x.reshape(B, -1, height * patch, width * patch)
