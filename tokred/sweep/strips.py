"""What tokenizers drew, one row of pictures for every number of tokens."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tokred.sweep.extra import need


def draw_strips(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a PNG: for every tokenizer the same pictures from few tokens to all, with their PSNR."""
    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    rows = sorted(rows, key=lambda row: (row["model"], row["bits"]))
    groups = [(model, list(group)) for model, group in groupby(rows, key=lambda row: row["model"])]
    figure = Figure(figsize=(9.5, 0.4 * len(groups) + 0.95 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [0.4 + 0.95 * len(group) for _, group in groups]
    parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for part, (model, group) in zip(parts, groups, strict=True):
        part.suptitle(model, fontsize=11)
        for cell, row in zip(part.subplots(len(group), 1, squeeze=False)[:, 0], group, strict=True):
            with Image.open(io.BytesIO(row["strip"])) as strip:
                cell.imshow(strip.convert("RGB"), interpolation="nearest")
            cell.set_xticks([])
            cell.set_yticks([])
            cell.spines[:].set_visible(False)
            text = f"{row['tokens']:.3g} tokens\n{row['bits']:.0f} bits\n{row['psnr_drawn']:.1f} dB"
            cell.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(path, dpi=110)
