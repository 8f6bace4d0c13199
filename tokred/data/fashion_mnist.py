"""Fashion-MNIST: 60,000 training and 10,000 test pictures of clothes, 28 x 28, grey, ten classes (MIT licence)."""

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokred.data.tensors import TensorImages, Transform
from tokred.errors import DataError

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
MEAN, STD = 0.286, 0.353  # of the training pictures, in [0, 1]
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist
CACHE_FOLDER = Path("~/.cache/tokred").expanduser()

_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Return the array of one gzipped IDX file of unsigned bytes.

    Raises:
        DataError: the file is missing, cut off, or not an IDX file of bytes.
    """
    try:
        with gzip.open(path, "rb") as file:
            raw = file.read()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Expected a gzipped IDX file.") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataError(f"{path}: not an IDX file of unsigned bytes (it starts with {raw[:4].hex()}).")
    ndim = raw[3]
    shape = np.frombuffer(raw, dtype=">u4", count=ndim, offset=4).astype(int)
    if len(raw) != 4 + 4 * ndim + int(shape.prod()):
        raise DataError(f"{path}: {len(raw)} bytes do not fit its shape {tuple(shape)}. The file is cut off.")
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * ndim).reshape(shape).copy())


def fashion_mnist(
    split: str = "test",
    transform: Transform | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
) -> TensorImages:
    """Return one split of Fashion-MNIST, held in memory as bytes.

    Reads the files of Debian's package ``dataset-fashion-mnist``; where they are absent, torchvision downloads
    them to ``~/.cache/tokred``.

    Args:
        split: "train" or "test".
        transform: applied to each picture, a uint8 tensor [1, 28, 28].
        folder: where the four ``.gz`` files lie, if not at Debian's place.

    Raises:
        DataError: an unknown split, an unreadable file, or no files and no network.
    """
    if split not in _FILES:
        raise DataError(f"fashion-mnist has no split {split!r}. It has: {', '.join(_FILES)}.")
    folder = Path(folder) if folder is not None else DEBIAN_FOLDER
    if folder != DEBIAN_FOLDER or folder.is_dir():
        images, labels = (read_idx(folder / name) for name in _FILES[split])
    else:
        images, labels = _download(split)
    return TensorImages(images[:, None], labels.long(), CLASSES, transform)


def _download(split: str) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import FashionMNIST

    try:
        found = FashionMNIST(str(CACHE_FOLDER), train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Fashion-MNIST is neither at {DEBIAN_FOLDER} nor can it be downloaded ({error}). "
            "Try: apt install dataset-fashion-mnist; or use the 2,000 pictures that ship, 'fashion-mnist-sample'."
        ) from error
    return found.data, found.targets
