"""A Pareto plot as a picture for papers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokred.extra import need
from tokred.sweep.axes import Axis
from tokred.sweep.panels import COLUMNS_OF_PANELS, Look, Panel
from tokred.sweep.point import UNPATCHED

_FRONT = {"color": "0.35", "linewidth": 1.4}


def draw_picture(path: Path, panels: Sequence[Panel], looks: dict[str, Look], x: Axis, y: Axis) -> None:
    """Write a PNG: a curve for every look, the front in grey with black rims, the unpatched model as a star."""
    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(panels), COLUMNS_OF_PANELS)
    rows = -(-len(panels) // columns)
    beside = 0.6 + 0.085 * max(map(len, [*looks, "Pareto front"]))  # inches for the names of the curves
    figure = Figure(figsize=(beside + 5.2 * columns, 0.2 + 4.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for cell, panel in zip(cells, panels, strict=False):
        _draw_panel(cell, panel, looks, x, y)
    for cell in cells[len(panels) :]:
        cell.set_visible(False)
    first = cells[0]
    handles = [_entry(first, look, is_large=name == UNPATCHED) for name, look in looks.items()]
    handles += first.plot([], [], marker="o", markerfacecolor="white", markeredgecolor="black", **_FRONT)
    figure.legend(handles, [*looks, "Pareto front"], loc="outside right center", frameon=False)
    figure.savefig(path, dpi=160)


def _draw_panel(cell: Any, panel: Panel, looks: dict[str, Look], x: Axis, y: Axis) -> None:
    if panel.unpatched is not None:
        cell.axhline(panel.unpatched[y.column], color="0.6", linestyle=":", linewidth=1, zorder=0)
    cell.plot([row[x.column] for row in panel.front], [row[y.column] for row in panel.front], zorder=1, **_FRONT)
    for method, curve in panel.curves.items():
        look = looks[method]
        xs, ys = [row[x.column] for row in curve], [row[y.column] for row in curve]
        cell.plot(xs, ys, color=look.colour, alpha=0.35, linewidth=1, zorder=1)
        for row in curve:
            chosen = panel.on_front(row)
            rim = {"edgecolors": "black" if chosen else "white", "linewidths": 1.2 if chosen else 0.6}
            size, depth = (170, 4) if method == UNPATCHED else (62, 3 if chosen else 2)
            cell.scatter(
                row[x.column], row[y.column], s=size, marker=look.marker, color=look.colour, zorder=depth, **rim
            )
    cell.set_title(panel.title, fontsize=11)
    cell.set_xlabel(f"{x.title}  ({'right' if x.more_is_better else 'left'} is better)")
    cell.set_ylabel(y.title)
    cell.grid(True, color="0.92")
    cell.set_axisbelow(True)
    cell.spines[["top", "right"]].set_visible(False)


def _entry(cell: Any, look: Look, *, is_large: bool) -> Any:
    return cell.scatter([], [], s=110 if is_large else 55, marker=look.marker, color=look.colour)
