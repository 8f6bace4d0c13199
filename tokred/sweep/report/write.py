"""From a folder of results to one HTML file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokred.extra import need
from tokred.sweep.report.figures import figures
from tokred.sweep.report.sections import failures, heading, pictures, table
from tokred.sweep.store import StorageError, read_results


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write a report on the results of a sweep; return its path.

    It shows Pareto fronts, tokens layer by layer, realised beside ideal speed-ups, the worst images where the sweep
    kept some, a table to sort and to download, and failures with their errors. Scripts and pictures are in the file.

    Args:
        folder: where the results are.
        out: the file; ``report.html`` in ``folder`` if left out.

    Raises:
        DataError: there are no results.
        StorageError: the file cannot be written.
    """
    rows = read_results(folder, predictions=True).to_dicts()
    path = Path(out) if out is not None else Path(folder) / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make_page(rows, Path(folder).name), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: the report cannot be written ({error.strerror}).") from error
    return path


def make_page(rows: Sequence[dict[str, Any]], name: str) -> str:
    """The page about rows with the columns of a sweep."""
    finished = [row for row in rows if row["status"] == "finished"]
    parts = [heading(rows, name)]
    for index, (title, figure) in enumerate(figures(finished)):
        figure.update_layout(margin={"t": 40, "b": 60})
        drawn = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{index}")
        parts.append(f"<section><h2>{html.escape(title)}</h2>{drawn}</section>")
    parts += [pictures(finished), table(finished, name), failures(rows)]
    here = files("tokred.sweep.report")
    style, script = ((here / file).read_text(encoding="utf-8") for file in ("page.css", "page.js"))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}: a sweep of tokred'
        f'</title><link rel="icon" href="data:,"><style>{style}</style>'
        f"<script>{need('plotly.offline').get_plotlyjs()}</script></head>\n"
        f"<body><main>{''.join(parts)}</main><script>{script}</script></body></html>\n"
    )
