"""The words, pictures and tables of a report."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

from tokred.sweep.store import COLUMNS

# what a table of results does not show: what is long, or the same in every row
_LEFT_OUT = {
    "key", "status", "error", "config", "predictions", "answers", "right", "strip", "worst", "worst_captions",
    "skipped_files", "tokens_per_layer", "tokred", "torch", "timm", "lmms_eval", "python", "revision",
}  # fmt: skip
_TEXT = {"string"}


def heading(rows: Sequence[dict[str, Any]], name: str) -> str:
    """What was measured, where, with which versions."""
    failed = sum(row["status"] != "finished" for row in rows)
    lines = [
        f"{len(rows)} points of {_names(rows, 'model')} on {_names(rows, 'data')}"
        + (f", <a href='#failures'>{failed} of them failed</a>" if failed else ""),
        f"{_names(rows, 'device_name')}; tokred {_names(rows, 'tokred')} ({_names(rows, 'revision')}), torch "
        f"{_names(rows, 'torch')}, timm {_names(rows, 'timm')}, Python {_names(rows, 'python')}",
    ]
    return f"<h1>{html.escape(name)}</h1>" + "".join(f"<p>{line}</p>" for line in lines)


def pictures(rows: Sequence[dict[str, Any]]) -> str:
    """The images that each point does worst on, and what tokenizers drew."""
    shown = []
    for row in rows:
        title = html.escape(f"{row['model']}: {row['method']} {row['label']}")
        for column, captions in (("worst", row["worst_captions"] or ()), ("strip", ())):
            if row[column]:
                source = base64.b64encode(row[column]).decode()
                words = "".join(f"<li>{html.escape(caption)}</li>" for caption in captions)
                shown.append(
                    f"<figure><figcaption>{title}</figcaption><img alt='{title}' "
                    f"src='data:image/png;base64,{source}'><ol>{words}</ol></figure>"
                )
    if not shown:
        return ""
    title = "Worst images" if any(row["worst"] for row in rows) else "Decoded pictures"
    return f"<section id='pictures'><h2>{title}</h2>{''.join(shown)}</section>"


def table(rows: Sequence[dict[str, Any]], name: str) -> str:
    """All that was measured, to sort by a click and to download."""
    columns = [c for c in COLUMNS if c not in _LEFT_OUT and any(row[c] is not None for row in rows)]
    head = "".join(f"<th title='sort'>{column}</th>" for column in columns)
    body = "".join("<tr>" + "".join(_cell(row[c], COLUMNS[c]) for c in columns) + "</tr>" for row in rows)
    return (
        f"<section><h2>All points</h2><button id='download' data-name='{html.escape(name)}.csv'>Download CSV</button>"
        f"<div class='wide'><table id='points'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        "</section>"
    )


def failures(rows: Sequence[dict[str, Any]]) -> str:
    """Points that could not be measured, and images that could not be read."""
    failed = [row for row in rows if row["status"] != "finished"]
    items = [f"{row['model']} on {row['data']}, {row['method']} {row['label']}: {row['error']}" for row in failed]
    skipped = dict.fromkeys(file for row in rows for file in row["skipped_files"] or ())
    parts = _list("failures", "Failures", items) + _list("skipped", "Images that could not be read", skipped)
    notes = dict.fromkeys(row["note"] for row in rows if row["note"])
    return parts + _list("notes", "Notes", notes)


def _list(name: str, title: str, items: Iterable[str]) -> str:
    lines = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    return f"<section id='{name}'><h2>{title}</h2><ul>{lines}</ul></section>" if lines else ""


def _names(rows: Sequence[dict[str, Any]], column: str) -> str:
    names = list(dict.fromkeys(row[column] for row in rows if row[column] is not None))
    return html.escape(", ".join(names)) or "-"


def _cell(value: Any, kind: str) -> str:
    if value is None:
        return "<td></td>"
    if kind in _TEXT:
        return f"<td>{html.escape(value)}</td>"
    if isinstance(value, list):
        return "<td>" + " ".join("-" if one is None else f"{one:.4g}" for one in value) + "</td>"
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"<td class='number' data-value='{value}'>{shown}</td>"
