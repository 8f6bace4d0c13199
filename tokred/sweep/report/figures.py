"""The plots of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tokred.extra import need
from tokred.sweep.axes import AXES, Axis, fronts, have
from tokred.sweep.page import make_figure
from tokred.sweep.panels import COLUMNS_OF_PANELS, Look, Panel, choose_looks, make_panels

_REALISED = ("speedup", "prefill_speedup")


def figures(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Titles and plotly figures: the fronts, the tokens of every layer, realised beside ideal speed-ups."""
    looks = choose_looks(rows)
    for x, y in fronts(rows):
        panels = make_panels(rows, AXES[x], AXES[y])
        yield f"{AXES[y].title} over {AXES[x].title}", make_figure(panels, looks, AXES[x], AXES[y])
    with_layers = [row for row in rows if row["tokens_per_layer"]]
    if with_layers:
        yield "Tokens layer by layer", _tokens(make_panels(with_layers, AXES["mean_tokens"], AXES["gmacs"]), looks)
    for column in _REALISED:
        if have(rows, "ideal_speedup", column):
            panels = make_panels(rows, AXES["ideal_speedup"], AXES[column])
            yield f"Realised against ideal: {AXES[column].title}", _realised(panels, looks, AXES[column])


def _grid(panels: Sequence[Panel], x: str, y: str) -> tuple[Any, list[dict[str, int]]]:
    """An empty figure with a cell for every panel, and where the cells are."""
    columns = min(len(panels), COLUMNS_OF_PANELS)
    rows = -(-len(panels) // columns)
    figure = need("plotly.subplots").make_subplots(
        rows=rows, cols=columns, subplot_titles=[panel.title for panel in panels], x_title=x, y_title=y
    )
    figure.update_layout(template="plotly_white", hovermode="closest", height=120 + 400 * rows)
    return figure, [{"row": index // columns + 1, "col": index % columns + 1} for index in range(len(panels))]


def _tokens(panels: Sequence[Panel], looks: dict[str, Look]) -> Any:
    go = need("plotly.graph_objects")
    figure, cells = _grid(panels, "layer", "tokens")
    named: set[str] = set()
    for panel, cell in zip(panels, cells, strict=True):
        for method, curve in panel.curves.items():
            for row in curve:
                tokens = row["tokens_per_layer"]
                trace = go.Scatter(
                    x=list(range(1, len(tokens) + 1)), y=tokens, mode="lines+markers", name=method,
                    legendgroup=method, showlegend=method not in named,
                    line={"color": looks[method].colour, "width": 1}, marker={"size": 5},
                    hovertemplate=f"{method} {row['label']}<br>layer %{{x}}: %{{y}} tokens<extra></extra>",
                )  # fmt: skip
                figure.add_trace(trace, **cell)
                named.add(method)
    figure.update_yaxes(rangemode="tozero")
    return figure


def _realised(panels: Sequence[Panel], looks: dict[str, Look], realised: Axis) -> Any:
    go = need("plotly.graph_objects")
    column = realised.column
    figure, cells = _grid(panels, "ratio of MACs", realised.title)
    named: set[str] = set()
    for panel, cell in zip(panels, cells, strict=True):
        most = max(row["ideal_speedup"] for curve in panel.curves.values() for row in curve)
        line = {"color": "#999999", "dash": "dot", "width": 1}
        ideal = go.Scatter(x=[1, most], y=[1, most], mode="lines", line=line, hoverinfo="skip", showlegend=False)
        figure.add_trace(ideal, **cell)
        for method, curve in panel.curves.items():
            middle = [row[column] for row in curve]
            trace = go.Scatter(
                x=[row["ideal_speedup"] for row in curve], y=middle, mode="markers", name=method,
                legendgroup=method, showlegend=method not in named,
                text=[f"{method} {row['label']}" for row in curve],
                hovertemplate="%{text}<br>ideal %{x:.2f}x, realised %{y:.2f}x<extra></extra>",
                marker={"color": looks[method].colour, "symbol": looks[method].symbol, "size": 10},
                error_y={
                    "array": [(row[f"{column}_high"] or row[column]) - row[column] for row in curve],
                    "arrayminus": [row[column] - (row[f"{column}_low"] or row[column]) for row in curve],
                    "thickness": 1,
                },
            )  # fmt: skip
            figure.add_trace(trace, **cell)
            named.add(method)
    return figure
