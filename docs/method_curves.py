"""What was measured of a method on the models that ship: rows of docs/results/, and a picture of them."""

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import polars as pl

RESULTS = Path(__file__).parent / "results"
QUALITIES = {"text_to_image_r1": "text to image R@1 %", "top1": "top-1 %", "exact_match": "exact match %"}
"""What a sweep may have measured of answers, by its column: the first that is there is shown."""

matplotlib.use("Agg")


@cache
def sweeps() -> dict[str, pl.DataFrame]:
    """Finished points of every committed sweep over methods, by the name of its file."""
    found = {}
    for path in sorted(RESULTS.glob("*.parquet")):
        rows = pl.read_parquet(path)
        if {"method", "gmacs", "status"} <= set(rows.columns):
            rows = rows.filter((pl.col("status") == "finished") & pl.col("gmacs").is_not_null())
            if quality(rows) is not None:
                found[path.name] = rows
    return found


def quality(rows: pl.DataFrame) -> str | None:
    """The column that says how good the answers are."""
    return next((name for name in QUALITIES if name in rows.columns and rows[name].is_not_null().any()), None)


def measured(method: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """The file and the points of a method, from the cheapest to the dearest, with the unpatched models."""
    for file, rows in sweeps().items():
        own = rows.filter(pl.col("method") == method)
        if len(own):
            whole = rows.filter(
                (pl.col("method") == "unpatched") & pl.col("model").is_in(own["model"].unique().to_list())
            )
            yield file, pl.concat([own, whole]).sort("model", "gmacs")


def table(points: pl.DataFrame) -> str:
    """The points as a Markdown table. Speed is that of the whole model, or of the prefill of a language model."""
    column = quality(points)
    assert column is not None
    speed, of = ("speedup", "speed-up") if points["speedup"].is_not_null().any() else ("prefill_speedup", "prefill")
    lines = [f"| model | setting | GMACs | {QUALITIES[column]} | agreement % | {of} |", "|---|---|---:|---:|---:|---:|"]
    lines += [_row(row, column, speed) for row in points.iter_rows(named=True)]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any], column: str, speed: str) -> str:
    setting = row["label"] or "unpatched"
    return (
        f"| `{row['model']}` | {setting} | {row['gmacs']:.3f} | {row[column]:.1f} | {row['agreement']:.1f} "
        f"| {row[speed] or 1.0:.2f}x |"
    )


def picture(file: str, method: str) -> bytes:
    """Quality over GMACs as an SVG, a panel for every model: this method among the others, which are grey."""
    rows = sweeps()[file]
    column = quality(rows)
    assert column is not None
    models = rows.filter(pl.col("method") == method)["model"].unique().sort().to_list()
    figure, panels = plt.subplots(1, len(models), figsize=(4.6 * len(models), 3.2), squeeze=False, layout="constrained")
    for panel, model in zip(panels[0], models, strict=True):
        here = rows.filter(pl.col("model") == model)
        others = here.filter(~pl.col("method").is_in([method, "unpatched"]))
        whole = here.filter(pl.col("method") == "unpatched")
        own = pl.concat([here.filter(pl.col("method") == method), whole]).sort("gmacs")
        panel.plot(others["gmacs"], others[column], "o", color="#bdbdbd", markersize=4, label="other methods")
        panel.plot(own["gmacs"], own[column], "o-", color="#00897b", label=method)
        panel.plot(whole["gmacs"], whole[column], "s", color="#37474f", label="unpatched")
        panel.set(title=model, xlabel="GMACs", ylabel=QUALITIES[column])
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    panels[0][0].legend(frameon=False, fontsize="small", loc="lower right")
    file_like = io.BytesIO()
    figure.savefig(file_like, format="svg", metadata={"Date": None})
    plt.close(figure)
    return file_like.getvalue()
