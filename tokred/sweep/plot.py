"""Pareto plots of a sweep: a picture (PNG) and a page (HTML)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokred.sweep.axes import Axis, axis
from tokred.sweep.page import draw_page
from tokred.sweep.panels import choose_looks, make_panels
from tokred.sweep.picture import draw_picture
from tokred.sweep.store import StorageError, read_results
from tokred.sweep.strips import draw_strips


def plot_results(
    folder: str | Path, x: str = "speedup", y: str = "top1", out: str | Path | None = None
) -> tuple[Path, ...]:
    """Draw the results of a sweep; return the paths of the PNG and of the HTML page.

    For tokenizers there is another PNG, with what they drew.

    Args:
        folder: where the results are.
        x: column for the horizontal axis, see :data:`tokred.sweep.AXES`.
        y: column for the vertical axis.
        out: path of the picture without its ending; by default ``pareto_<x>_<y>`` in ``folder``.

    Raises:
        ConfigError: no such column.
        DataError: no results, or none that have both columns.
        StorageError: the files cannot be written.
    """
    axes = axis(x), axis(y)
    base = Path(out) if out is not None else Path(folder) / f"pareto_{x}_{y}"
    if base.suffix in (".png", ".html"):
        base = base.with_suffix("")
    return draw_plot(read_results(folder, predictions=True).to_dicts(), *axes, base)


def draw_plot(
    rows: Sequence[dict[str, Any]], x: Axis, y: Axis, base: Path, title: str = "tokred sweep"
) -> tuple[Path, ...]:
    """Draw rows with the columns of a sweep; ``base`` is the path of both files without their endings.

    Raises:
        DataError: no row has both values.
        StorageError: the files cannot be written.
    """
    panels = make_panels(rows, x, y)
    looks = choose_looks([row for panel in panels for curve in panel.curves.values() for row in curve])
    png, html, pictures = (base.with_name(base.name + ending) for ending in (".png", ".html", "_pictures.png"))
    drawn = [row for row in rows if row.get("strip")]
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        draw_picture(png, panels, looks, x, y)
        html.write_text(draw_page(panels, looks, x, y, title), encoding="utf-8")
        if drawn:
            draw_strips(pictures, drawn)
    except OSError as error:
        raise StorageError(f"{base}: the plot cannot be written ({error.strerror}).") from error
    return (png, html, pictures) if drawn else (png, html)
