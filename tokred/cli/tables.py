"""Tables of sweeps in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokred.cost import Cost
from tokred.sweep import UNPATCHED, Difference, Point
from tokred.sweep.panels import subject_of

_SHOWN_FILES = 5


@dataclass(frozen=True)
class _Layout:
    """One kind of results as a table.

    Attributes:
        decides: the column that only such results have.
        things: what was counted.
        columns: title, column of the results, and form.
    """

    decides: str
    things: str
    columns: tuple[tuple[str, str, str], ...]


_LAYOUTS = (
    _Layout("visual_tokens", "questions", (
        ("visual tokens", "visual_tokens", "{:.1f}"), ("newlines", "newline_tokens", "{:.1f}"),
        ("exact %", "exact_match", "{:.2f}"), ("metric", "metric", "{}"), ("score", "score", "{:.4g}"),
        ("agree %", "agreement", "{:.2f}"), ("GMACs", "gmacs", "{:.3f}"),
        ("ideal", "ideal_speedup", "{:.2f}x"), ("prefill", "prefill_speedup", "{:.2f}x"),
        ("vision ms", "vision_ms", "{:.1f}"), ("reduction ms", "reduction_ms", "{:.1f}"),
        ("prefill ms", "prefill_ms", "{:.1f}"), ("decode ms", "decode_ms", "{:.1f}"),
        ("tokens/s", "tokens_per_second", "{:.0f}"), ("KV MB", "kv_cache_mb", "{:.2f}"),
        ("peak MB", "peak_memory_mb", "{:.0f}"),
    )),
    _Layout("bits", "pictures", (
        ("tokens", "tokens", "{:.1f}"), ("bits", "bits", "{:.0f}"), ("PSNR", "psnr", "{:.2f}"),
        ("drawn", "psnr_drawn", "{:.2f}"), ("SSIM", "ssim", "{:.3f}"), ("error", "pixel_error", "{:.3f}"),
        ("features", "feature_distance", "{:.3f}"), ("Frechet", "frechet_distance", "{:.1f}"),
        ("probe %", "probe_top1", "{:.1f}"), ("encoded/s", "encode_images_per_second", "{:.0f}"),
        ("decoded/s", "decode_images_per_second", "{:.0f}"),
    )),
    _Layout("image_to_text_r1", "pictures", (
        ("GMACs", "gmacs", "{:.3f}"), ("tokens", "mean_tokens", "{:.1f}"), ("i2t R@1", "image_to_text_r1", "{:.1f}"),
        ("i2t R@5", "image_to_text_r5", "{:.1f}"), ("t2i R@1", "text_to_image_r1", "{:.1f}"),
        ("t2i R@5", "text_to_image_r5", "{:.1f}"), ("zero-shot %", "top1", "{:.1f}"),
        ("agree %", "agreement", "{:.1f}"), ("speed-up", "speedup", "{:.2f}x"),
        ("images/s", "images_per_second", "{:.0f}"), ("texts/s", "texts_per_second", "{:.0f}"),
        ("p50 ms", "latency_p50_ms", "{:.0f}"),
    )),
    _Layout("speedup", "images", (
        ("GMACs", "gmacs", "{:.3f}"), ("tokens", "mean_tokens", "{:.1f}"), ("top-1 %", "top1", "{:.2f}"),
        ("paper %", "paper_top1", "{:.2f}"), ("ECE %", "ece", "{:.1f}"), ("worst drop %", "worst_class_drop", "{:.1f}"),
        ("kNN %", "knn_top1", "{:.2f}"), ("probe %", "probe_top1", "{:.2f}"), ("cosine", "feature_cosine", "{:.3f}"),
        ("agree %", "agreement", "{:.2f}"), ("speed-up", "speedup", "{:.2f}x"),
        ("images/s", "images_per_second", "{:.0f}"), ("p50 ms", "latency_p50_ms", "{:.0f}"),
        ("p95 ms", "latency_p95_ms", "{:.0f}"), ("peak MB", "peak_memory_mb", "{:.0f}"),
        ("RSS MB", "rss_mb", "{:.0f}"), ("J/image", "joules_per_image", "{:.3f}"),
    )),
)  # fmt: skip


def result_tables(rows: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """One table for every model, tower and data set, from the dearest point to the cheapest."""
    finished = [row for row in rows if row["status"] == "finished"]
    for name, group in groupby(finished, key=subject_of):
        members = sorted(group, key=lambda row: (-(row.get("gmacs") or row.get("bits") or 0.0), _is_patched(row)))
        first = members[0]
        layout = next(layout for layout in _LAYOUTS if first.get(layout.decides) is not None)
        table = Table(
            title=f"{name}: {first['images']} {layout.things}, batch {first['batch_size']}, "
            f"{first['dtype']}, {first['device_name']}, {first['threads']} threads",
            title_justify="left",
        )
        table.add_column("method")
        table.add_column("setting")
        columns = [column for column in layout.columns if any(row.get(column[1]) is not None for row in members)]
        for title, _, _ in columns:
            table.add_column(title, justify="right")
        for row in members:
            cells = (_number(row.get(column), form) for _, column, form in columns)
            table.add_row(row["method"], escape(row["label"]), *cells, style=None if _is_patched(row) else "bold")
        yield table


def _is_patched(row: dict[str, Any]) -> bool:
    return row["method"] != UNPATCHED


def planned_table(
    planned: Sequence[tuple[Point, Cost | Exception | str]], seconds: Sequence[float | None] | None = None
) -> Table:
    """What a sweep would measure, and about how long every point would take, where that is known."""
    table = Table("model", "data", "method", "setting", "GMACs", "about", "tokens per layer")
    for (point, cost), time in zip(planned, seconds or [None] * len(planned), strict=True):
        if isinstance(cost, str):
            outlook = ["", "", cost]
        elif isinstance(cost, Exception):
            outlook = ["", "", f"[red]will fail: {escape(str(cost))}[/]"]
        else:
            about = "" if time is None else duration(time)
            outlook = [f"{cost.gmacs:.3f}", about, " ".join(map(str, cost.tokens_per_layer))]
        table.add_row(point.model, point.data, point.method or UNPATCHED, escape(point.label), *outlook)
    return table


def duration(seconds: float) -> str:
    """In the unit that suits.

    >>> duration(4.2), duration(400), duration(10000)
    ('4 s', '7 min', '2.8 h')
    """
    if seconds < 60:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def difference_table(found: Sequence[Difference]) -> Table:
    """What differs between two runs."""
    table = Table("model", "data", "method", "setting", "", "first", "second", "difference", "test", "p", "")
    for one in found:
        verdict = "[bold]real[/]" if one.is_real else "noise"
        p = "-" if one.p is None else f"{one.p:.2g}"
        numbers = f"{one.a:.2f}", f"{one.b:.2f}", f"{one.b - one.a:+.2f}"
        table.add_row(*map(escape, one.point), one.column, *numbers, one.test, p, verdict)
    return table


def print_complaints(console: Console, rows: Sequence[dict[str, Any]]) -> int:
    """Say which points failed and which images were skipped; return how many points failed."""
    failed = [row for row in rows if row["status"] != "finished"]
    for error, group in groupby(sorted(failed, key=lambda row: row["error"]), key=lambda row: row["error"]):
        points = "; ".join(f"{row['model']} {row['method']} {row['label']}".strip() for row in group)
        console.print(f"[bold red]failed:[/] {escape(points)}: {escape(error)}", highlight=False, soft_wrap=True)
    skipped = {file: None for row in rows for file in row.get("skipped_files") or []}
    if skipped:
        more = f" and {len(skipped) - _SHOWN_FILES} more" if len(skipped) > _SHOWN_FILES else ""
        files = "; ".join(list(skipped)[:_SHOWN_FILES])
        text = f"[yellow]{len(skipped)} images could not be read and were left out:[/] {escape(files)}{more}"
        console.print(text, highlight=False, soft_wrap=True)
    for note in {row.get("note") for row in rows} - {None}:
        console.print(f"[yellow]{escape(str(note))}[/]", highlight=False, soft_wrap=True)
    return len(failed)


def _number(value: float | str | None, form: str) -> str:
    return "-" if value is None else form.format(value)
