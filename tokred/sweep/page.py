"""A Pareto plot as a page that answers the mouse and needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokred.extra import need
from tokred.sweep.axes import Axis
from tokred.sweep.panels import COLUMNS_OF_PANELS, Look, Panel
from tokred.sweep.point import UNPATCHED

_SHOWN = (
    ("top-1", "top1", "{:.2f} %"),
    ("agreement", "agreement", "{:.2f} %"),
    ("speed-up", "speedup", "{:.2f}x"),
    ("images/s", "images_per_second", "{:.1f}"),
    ("p50 of a batch", "latency_p50_ms", "{:.1f} ms"),
    ("peak memory", "peak_memory_mb", "{:.1f} MB"),
    ("GMACs", "gmacs", "{:.3f}"),
    ("mean tokens", "mean_tokens", "{:.1f}"),
    ("exact match", "exact_match", "{:.2f} %"),
    ("score", "score", "{:.4g}"),
    ("metric", "metric", "{}"),
    ("visual tokens", "visual_tokens", "{:.1f}"),
    ("prefill", "prefill_speedup", "{:.2f}x"),
    ("bits", "bits", "{:.0f}"),
    ("PSNR of the estimate", "psnr", "{:.2f} dB"),
    ("SSIM", "ssim", "{:.3f}"),
    ("linear probe", "probe_top1", "{:.1f} %"),
)


def draw_page(panels: Sequence[Panel], looks: dict[str, Look], x: Axis, y: Axis, title: str) -> str:
    """The same plot as :func:`tokred.sweep.picture.draw_picture`, as HTML; pointing shows the configuration."""
    figure = make_figure(panels, looks, x, y)
    figure.update_layout(title=f"{title}: {y.title} over {x.title}")
    return figure.to_html(full_html=True, include_plotlyjs=True)


def make_figure(panels: Sequence[Panel], looks: dict[str, Look], x: Axis, y: Axis) -> Any:
    """The plot as a figure of plotly, without a title."""
    subplots = need("plotly.subplots")
    columns = min(len(panels), COLUMNS_OF_PANELS)
    rows = -(-len(panels) // columns)
    figure = subplots.make_subplots(rows=rows, cols=columns, subplot_titles=[panel.title for panel in panels])
    named: set[str] = set()
    for index, panel in enumerate(panels):
        cell = {"row": index // columns + 1, "col": index % columns + 1}
        figure.add_trace(_front(panel, x, y, is_first=index == 0), **cell)
        for method, curve in panel.curves.items():
            figure.add_trace(_curve(method, curve, panel, looks[method], x, y, is_first=method not in named), **cell)
            named.add(method)
        if panel.unpatched is not None:
            figure.add_hline(y=panel.unpatched[y.column], line={"color": "#999999", "dash": "dot", "width": 1}, **cell)
        figure.update_xaxes(title_text=x.title, **cell)
        figure.update_yaxes(title_text=y.title, **cell)
    figure.update_layout(template="plotly_white", hovermode="closest", height=120 + 480 * rows)
    return figure


def _front(panel: Panel, x: Axis, y: Axis, *, is_first: bool) -> Any:
    return need("plotly.graph_objects").Scatter(
        x=[row[x.column] for row in panel.front],
        y=[row[y.column] for row in panel.front],
        mode="lines",
        line={"color": "#595959", "width": 2},
        name="Pareto front",
        legendgroup="front",
        showlegend=is_first,
        hoverinfo="skip",
    )


def _curve(
    method: str, curve: Sequence[dict[str, Any]], panel: Panel, look: Look, x: Axis, y: Axis, *, is_first: bool
) -> Any:
    rims = [2.0 if panel.on_front(row) else 0.4 for row in curve]
    return need("plotly.graph_objects").Scatter(
        x=[row[x.column] for row in curve],
        y=[row[y.column] for row in curve],
        mode="lines+markers",
        name=method,
        legendgroup=method,
        showlegend=is_first,
        text=[_hover(row) for row in curve],
        hovertemplate="%{text}<extra></extra>",
        line={"color": look.colour, "width": 0.6},
        marker={
            "color": look.colour,
            "symbol": look.symbol,
            "size": 16 if method == UNPATCHED else 11,
            "line": {"color": "black", "width": rims},
        },
    )


def _hover(row: dict[str, Any]) -> str:
    """What pointing shows: the setting, the numbers, the machine."""
    lines = [f"<b>{row['method']}</b> {row['label']}"]
    lines += [f"{title}: {form.format(row[column])}" for title, column, form in _SHOWN if row.get(column) is not None]
    if row["tokens_per_layer"]:
        lines.append("tokens per layer: " + " ".join(map(str, row["tokens_per_layer"])))
    lines.append(f"{row['images']} images, batch {row['batch_size']}, {row['dtype']}, {row['device_name']}")
    return "<br>".join(lines)
