"""What training leaves to look at: a table of measurements and grids of pictures."""

import csv
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from tokred.tokenizers.base import to_bytes


class Records:
    """A table with one row an evaluation: ``metrics.parquet``, or ``metrics.csv`` where pyarrow is not installed.

    Args:
        folder: where it lies.
        step: where training goes on; later rows of an earlier run are forgotten.
    """

    def __init__(self, folder: Path, step: int):
        self.parquet = importlib.util.find_spec("pyarrow") is not None
        self.path = folder / ("metrics.parquet" if self.parquet else "metrics.csv")
        rows = self._read() if step and self.path.is_file() else []
        self.rows = [row for row in rows if int(row["step"]) <= step]

    def add(self, step: int, epoch: int, loss: float, rate: float, metrics: Mapping[str, float]) -> None:
        """Write one more row."""
        self.rows.append({"step": step, "epoch": epoch, "loss": loss, "learning_rate": rate, **metrics})
        partial = self.path.with_suffix(".partial")
        if self.parquet:
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(self.rows), partial)
        else:
            with partial.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(self.rows[-1]))
                writer.writeheader()
                writer.writerows(self.rows)
        partial.replace(self.path)

    def _read(self) -> list[dict[str, Any]]:
        if self.parquet:
            import pyarrow.parquet

            return pyarrow.parquet.read_table(self.path).to_pylist()
        with self.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


def write_grid(pictures: Tensor, path: Path) -> None:
    """Write pictures [R, P, C, H, W] in [-1, 1] as one PNG of R rows."""
    R, P, C, H, W = pictures.shape
    array = to_bytes(pictures).permute(0, 3, 1, 4, 2).reshape(R * H, P * W, C).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array[..., 0] if C == 1 else array).save(path)
