"""The pictures that ship inside the package, so that everything runs on a fresh machine without a network."""

from pathlib import Path

import numpy as np
import torch

from tokred.data.fashion_mnist import CLASSES
from tokred.data.tensors import TensorImages, Transform
from tokred.errors import DataError

_FOLDER = Path(__file__).parent / "samples"


def fashion_mnist_sample(split: str = "test", transform: Transform | None = None) -> TensorImages:
    """Return 2,000 test pictures of Fashion-MNIST: of each class the first 200, in the order of the test set.

    >>> len(fashion_mnist_sample())
    2000
    """
    if split != "test":
        raise DataError(f"fashion-mnist-sample has no split {split!r}. It has: test.")
    path = _FOLDER / "fashion_mnist_2000.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: the shipped sample cannot be read ({error}). Install tokred again.") from error
    return TensorImages(images[:, None], labels.long(), CLASSES, transform)
