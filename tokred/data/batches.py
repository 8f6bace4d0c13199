"""Batches of a data set, without the pictures that cannot be read."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from tokred.data.pictures import Unreadable


class Batches:
    """Iterate (pictures, labels) over ``dataset``.

    Unreadable pictures are left out; ``skipped`` names those of the latest pass, with worker processes, too.

    Args:
        batch_size: pictures a batch; the last one may be smaller, and so is one with unreadable pictures.
        workers: processes that read ahead; 0 reads in this one.
    """

    def __init__(self, dataset: Dataset[Any], batch_size: int = 64, *, workers: int = 0, shuffle: bool = False):
        self.dataset = dataset
        self.batch_size, self.workers = batch_size, workers
        self.skipped: list[Unreadable] = []
        self._loader = DataLoader(
            dataset, batch_size=batch_size, shuffle=shuffle, num_workers=workers, collate_fn=_collate
        )

    def __len__(self) -> int:
        return len(self._loader)

    def part(self, first: int, end: int) -> "Batches":
        """Return the batches from ``first`` to before ``end``, of the same pictures in the same order."""
        pictures = range(first * self.batch_size, min(end * self.batch_size, len(self.dataset)))  # type: ignore[arg-type]
        return Batches(Subset(self.dataset, pictures), self.batch_size, workers=self.workers)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.skipped = []
        for batch, unreadable in self._loader:
            self.skipped.extend(unreadable)
            if batch is not None:
                yield batch[0], batch[1]


def _collate(items: list[Any]) -> tuple[Any, list[Unreadable]]:
    unreadable = [item for item in items if isinstance(item, Unreadable)]
    read = [item for item in items if not isinstance(item, Unreadable)]
    return (default_collate(read) if read else None), unreadable
