"""Pictures for tasks that learn to draw: of one size, held in memory or read from a folder, and varied."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from tokred.data import ImageFolder, TensorImages, Unreadable, load_dataset
from tokred.data.square import Square, fit
from tokred.data.tensors import augment
from tokred.errors import DataError
from tokred.train import parallel


class Pictures:
    """The training pictures of a data set and those set aside, as bytes of one size, with their labels.

    Args:
        data: a name or folder that :func:`tokred.data.load_dataset` knows.
        side: of the square pictures. Those in memory that are smaller get a dark border, all others are resized.
        channels: 1 for grey.
        holdout: training pictures set aside.
        seed: of the choice of those.
        flip: mirror at random.
        shift: move by so many pixels at most; dark ones come in.
        workers: processes that read pictures of a folder.
    """

    def __init__(
        self,
        data: str,
        side: int,
        channels: int,
        *,
        holdout: int = 0,
        seed: int = 0,
        flip: bool = False,
        shift: int = 0,
        workers: int = 4,
    ):
        self.flip, self.shift, self.workers = flip, shift, workers
        source: Any = load_dataset(data, "train", Square(side, channels))
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
        if holdout >= len(order):
            raise DataError(f"{data}: {holdout} pictures to set aside, but there are only {len(order)}.")
        self.classes = tuple(source.classes)
        held, self.order = order[:holdout], order[holdout:]
        if isinstance(source, TensorImages):
            self.folder: ImageFolder | None = None
            images = fit(source.images, side, channels)
            self.images, self.labels = images[self.order], source.labels[self.order]
            self.held, self.held_labels = images[held], source.labels[held]
        else:
            self.folder = source
            pairs = [source[int(index)] for index in held]
            pairs = [pair for pair in pairs if not isinstance(pair, Unreadable)]
            self.held = torch.stack([image for image, _ in pairs]) if pairs else torch.empty(0, channels, side, side)
            self.held_labels = torch.tensor([label for _, label in pairs], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of shuffled, varied pictures [B, C, H, W] in [-1, 1] and labels [B].

        Of several processes each yields its own part of every batch.
        """
        order = torch.randperm(len(self), generator=generator)
        order = parallel.own_part(order[: len(order) // batch_size * batch_size], batch_size)
        batch_size //= parallel.world()
        for images, labels in self._read(order, batch_size):
            images = augment(images, generator, padding=self.shift, flip=self.flip)
            yield images.float() / 127.5 - 1, labels

    def _read(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        if self.folder is None:
            for pick in order.split(batch_size):
                yield self.images[pick], self.labels[pick]
            return
        subset = Subset(self.folder, self.order[order].tolist())
        loader = DataLoader(subset, batch_size, num_workers=self.workers, collate_fn=_collate, drop_last=True)
        yield from loader


def _collate(items: list[Any]) -> tuple[Tensor, Tensor]:
    """Unreadable pictures are replaced by others of the batch."""
    read = [item for item in items if not isinstance(item, Unreadable)]
    if not read:
        raise DataError(f"A whole batch of pictures cannot be read, the first being {items[0]}.")
    read = (read * len(items))[: len(items)]
    return torch.stack([image for image, _ in read]), torch.tensor([label for _, label in read])
