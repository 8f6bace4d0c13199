"""``tokred bench``: how much of the ideal speed-up arrives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tokred.bench.explain import Explanation
from tokred.bench.models import SpeedBench, run_bench, save
from tokred.bench.tokenizer import TokenizerBench, bench_tokenizer
from tokred.cli.console import output, progress_bar
from tokred.methods import ToMe


def bench(
    model: Annotated[str, typer.Option(help="A timm name; weights are random.")] = SpeedBench.model,
    r: Annotated[list[int] | None, typer.Option(min=0, help="Strength of ToMe; may be repeated. [0 8 13 16]")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = SpeedBench.batch_size,
    num_threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads.")] = SpeedBench.num_threads,
    rounds: Annotated[int, typer.Option(min=1, help="Timed pairs for every r, a process.")] = SpeedBench.rounds,
    processes: Annotated[int, typer.Option(min=1, help="Fresh processes for every r.")] = SpeedBench.processes,
    device: Annotated[str, typer.Option()] = SpeedBench.device,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = SpeedBench.dtype,
    tokenizer: Annotated[
        str | None, typer.Option(help="Time this tokenizer beside its bare transformer blocks instead.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write JSON there, and a page (.md) beside it.")] = None,
) -> None:
    """Time ToMe beside the unpatched model, A B, B A ..., and set the median ratio against the ratio of the MACs."""
    if tokenizer is not None:
        _bench_tokenizer(TokenizerBench(tokenizer, batch_size, num_threads, rounds, device, dtype), out)
        return
    setting = SpeedBench(model, tuple(r or SpeedBench.rs), batch_size, num_threads, rounds, processes, device, dtype)
    table = Table("r", "tokens at the end", "GMACs", "ideal", "measured", "middle half", "measured / ideal", "images/s")
    for column in table.columns:
        column.justify = "right"
    with progress_bar() as bar:
        task = bar.add_task("timing", total=len(setting.rs))

        def report(found: Explanation) -> None:
            table.add_row(*_cells(found))
            bar.advance(task)

        record = run_bench(setting, report)
    console = output()
    console.print(
        f"{model}, {dtype}, batch {batch_size}, {record['device']}, {record['threads']} threads, torch "
        f"{record['versions']['torch']}; {rounds} pairs each" + (f" in {processes} processes" if processes > 1 else ""),
        highlight=False,
    )
    console.print(table)
    if out is not None:
        written = save(record, out)
        console.print(f"Written: {', '.join(map(str, written))}", highlight=False)


def _bench_tokenizer(setting: TokenizerBench, out: Path | None) -> None:
    record = bench_tokenizer(setting)
    table = Table("", "time / time of the blocks", "middle half", "pictures/s")
    for part in ("encode", "decode"):
        found = record[part]
        middle = f"{found['low']:.3f} to {found['high']:.3f}"
        table.add_row(part, f"{found['over_blocks']:.3f}", middle, f"{found['images_per_second']:.1f}")
    console = output()
    console.print(
        f"{setting.tokenizer}, {setting.dtype}, batch {setting.batch_size}, {record['device']}, {record['threads']} "
        f"threads, torch {record['versions']['torch']}; {setting.rounds} pairs each",
        highlight=False,
    )
    console.print(table)
    if out is not None:
        console.print(f"Written: {save(record, out, page=None)[0]}", highlight=False)


def _cells(found: Explanation) -> list[str]:
    if found.measured is None or not isinstance(found.method, ToMe):
        return []
    ratio, (low, high) = found.measured.ratio, found.measured.quartiles
    return [
        str(found.method.r),
        str(found.after.tokens_per_layer[-1]),
        f"{found.after.gmacs:.2f}",
        f"{found.ideal:.3f}",
        f"{ratio:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{ratio / found.ideal:.3f}",
        f"{found.batch_size / found.measured.other.median:.1f}",
    ]
