"""What a plot shows, before it is drawn: one panel a model and data set, one look a curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tokred.errors import DataError
from tokred.sweep.axes import Axis, pareto_front
from tokred.sweep.point import UNPATCHED

# Okabe and Ito's colours, which colour-blind people tell apart; the marker says it a second time.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#6A3D9A")
# The same markers by the names of matplotlib and of plotly.
_MARKERS = (
    ("o", "circle"),
    ("s", "square"),
    ("^", "triangle-up"),
    ("D", "diamond"),
    ("v", "triangle-down"),
    ("P", "cross"),
    ("X", "x"),
    ("p", "pentagon"),
    ("h", "hexagon"),
)
COLUMNS_OF_PANELS = 3


@dataclass(frozen=True)
class Look:
    """How the points of one curve are drawn: its colour, and its marker for matplotlib and for plotly."""

    colour: str
    marker: str
    symbol: str


@dataclass(frozen=True)
class Panel:
    """One model, or the text tower of one, on one data set.

    Attributes:
        title: for people.
        curves: the points of every :func:`curve_of`, from left to right.
        unpatched: the unpatched model, if it was measured.
        front: the points that no other beats.
    """

    title: str
    curves: dict[str, list[dict[str, Any]]]
    unpatched: dict[str, Any] | None
    front: list[dict[str, Any]]

    def on_front(self, row: dict[str, Any]) -> bool:
        """Whether no other point beats this one."""
        return any(row["key"] == best["key"] for best in self.front)


def make_panels(rows: Sequence[dict[str, Any]], x: Axis, y: Axis) -> list[Panel]:
    """One panel for every model, tower and data set that has points with both values.

    Raises:
        DataError: no point has them.
    """
    usable = [row for row in rows if row[x.column] is not None and row[y.column] is not None]
    if not usable:
        notes = sorted({row["note"] or row["error"] for row in rows} - {None})
        raise DataError(f"No result has both {x.column} and {y.column}. {' '.join(notes[:2])}".rstrip())
    panels = []
    for title, group in groupby(sorted(usable, key=subject_of), key=subject_of):
        members = sorted(group, key=lambda row: (row["method"] != UNPATCHED, curve_of(row), row[x.column]))
        curves = {name: list(curve) for name, curve in groupby(members, key=curve_of)}
        unpatched = curves.get(UNPATCHED, [None])[0]
        panels.append(Panel(title, curves, unpatched, pareto_front(members, x, y)))
    return panels


def choose_looks(rows: Sequence[dict[str, Any]]) -> dict[str, Look]:
    """One colour and one marker a curve; no two share both, up to 72."""
    looks = {UNPATCHED: Look("#000000", "*", "star")}
    for index, name in enumerate(sorted({curve_of(row) for row in rows} - {UNPATCHED})):
        marker, symbol = _MARKERS[index % len(_MARKERS)]
        looks[name] = Look(_COLOURS[index % len(_COLOURS)], marker, symbol)
    return looks


def curve_of(row: dict[str, Any]) -> str:
    """What the points of one curve share: the method, and its knobs that are words; numbers say how strong it is.

    >>> curve_of({"method": "vtc_cls", "label": "positions=original, keep=0.25"})
    'vtc_cls, positions=original'
    """
    knobs = (knob.partition("=") for knob in (row.get("label") or "").split(", "))
    words = [
        f"{name}={value.rpartition('/')[2]}" for name, _, value in knobs if value[:1].isalpha() and name != "tower"
    ]
    return ", ".join([row["method"], *words])


def subject_of(row: dict[str, Any]) -> str:
    """What rows must share to be compared: the model, its tower, and the data.

    >>> subject_of({"model": "clip-shapes", "data": "scenes", "tower": "text"})
    'clip-shapes (text tower) on scenes'
    """
    tower = " (text tower)" if row.get("tower") == "text" else ""
    return f"{row['model']}{tower} on {row['data']}"
