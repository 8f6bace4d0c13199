"""What tokenizers drew, one row of pictures for every number of tokens."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tokred.extra import need


def draw_strips(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a PNG: for every tokenizer the same pictures from few tokens to all, with their PSNR, and the originals."""
    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    rows = sorted(rows, key=lambda row: (row["model"], row["bits"]))
    groups = {model: list(_lines(group)) for model, group in groupby(rows, key=lambda row: row["model"])}
    heights = [0.4 + 0.95 * len(lines) for lines in groups.values()]
    figure = Figure(figsize=(9.5, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (model, lines) in zip(parts, groups.items(), strict=True):
        part.suptitle(model, fontsize=11)
        for cell, (text, png) in zip(part.subplots(len(lines), 1, squeeze=False)[:, 0], lines, strict=True):
            with Image.open(io.BytesIO(png)) as strip:
                cell.imshow(strip.convert("RGB"), interpolation="nearest")
            cell.set_xticks([])
            cell.set_yticks([])
            cell.spines[:].set_visible(False)
            cell.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(path, dpi=110)


def _lines(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """What stands beside a row of pictures, and the PNG of the row; the originals last."""
    originals = []
    for row in rows:
        yield f"{row['tokens']:.3g} tokens\n{row['bits']:.0f} bits\n{row['psnr_drawn']:.1f} dB", row["strip"]
        if row.get("strip_originals"):
            originals = [("originals", row["strip_originals"])]
    yield from originals
