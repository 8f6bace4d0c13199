"""Tables of sweeps in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokred.cost import Cost
from tokred.sweep import UNPATCHED, Point

_SHOWN_FILES = 5


def result_tables(rows: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """One table for every model and data set, from the dearest point to the cheapest."""
    finished = [row for row in rows if row["status"] == "finished"]
    for (model, data), group in groupby(finished, key=lambda row: (row["model"], row["data"])):
        members = sorted(group, key=lambda row: (-(row["gmacs"] or 0.0), row["method"] != UNPATCHED))
        first = members[0]
        if first.get("exact_match") is not None:
            yield _vqa_table(model, data, members)
            continue
        table = Table(
            title=f"{model} on {data}: {first['images']} images, batch {first['batch_size']}, {first['dtype']}, "
            f"{first['device_name']}, {first['threads']} threads",
            title_justify="left",
        )
        table.add_column("method")
        table.add_column("setting")
        for title in ("GMACs", "tokens", "top-1 %", "agree %", "speed-up", "images/s", "p50 ms", "p95 ms", "peak MB"):
            table.add_column(title, justify="right")
        for row in members:
            table.add_row(
                row["method"],
                escape(row["label"]),
                f"{row['gmacs']:.3f}",
                f"{row['mean_tokens']:.1f}",
                _number(row["top1"], "{:.2f}"),
                f"{row['agreement']:.2f}",
                f"{row['speedup']:.2f}x",
                f"{row['images_per_second']:.0f}",
                f"{row['latency_p50_ms']:.0f}",
                f"{row['latency_p95_ms']:.0f}",
                f"{row['peak_memory_mb']:.0f}",
                style="bold" if row["method"] == UNPATCHED else None,
            )
        yield table


def _vqa_table(model: str, data: str, members: Sequence[dict[str, Any]]) -> Table:
    """Multimodal models: times are those of one batch."""
    first = members[0]
    table = Table(
        title=f"{model} on {data}: {first['images']} questions, batch {first['batch_size']}, {first['dtype']}, "
        f"{first['device_name']}, {first['threads']} threads",
        title_justify="left",
    )
    table.add_column("method")
    table.add_column("setting")
    for title in (
        "visual tokens", "newlines", "exact %", "agree %", "GMACs", "ideal", "prefill", "vision ms", "reduction ms",
        "prefill ms", "decode ms", "tokens/s", "KV MB", "peak MB",
    ):  # fmt: skip
        table.add_column(title, justify="right")
    for row in members:
        table.add_row(
            row["method"],
            escape(row["label"]),
            f"{row['visual_tokens']:.1f}",
            f"{row['newline_tokens']:.1f}",
            f"{row['exact_match']:.2f}",
            f"{row['agreement']:.2f}",
            _number(row["gmacs"], "{:.3f}"),
            _number(row["ideal_speedup"], "{:.2f}x"),
            f"{row['prefill_speedup']:.2f}x",
            f"{row['vision_ms']:.1f}",
            f"{row['reduction_ms']:.1f}",
            f"{row['prefill_ms']:.1f}",
            f"{row['decode_ms']:.1f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['kv_cache_mb']:.2f}",
            f"{row['peak_memory_mb']:.0f}",
            style="bold" if row["method"] == UNPATCHED else None,
        )
    return table


def planned_table(planned: Sequence[tuple[Point, Cost | Exception | None]]) -> Table:
    """What a sweep would measure."""
    table = Table("model", "data", "method", "setting", "GMACs", "tokens per layer")
    for point, cost in planned:
        if cost is None:
            outlook = ["", "depends on the prompts"]
        elif isinstance(cost, Exception):
            outlook = ["", f"[red]will fail: {escape(str(cost))}[/]"]
        else:
            outlook = [f"{cost.gmacs:.3f}", " ".join(map(str, cost.tokens_per_layer))]
        table.add_row(point.model, point.data, point.method or UNPATCHED, escape(point.label), *outlook)
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


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
