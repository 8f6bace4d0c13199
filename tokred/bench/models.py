"""Speed of a patched model beside the unpatched one, for a few strengths of ToMe."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tokred.bench.explain import Explanation, explain
from tokred.bench.machine import device_name, require_device, threads, versions
from tokred.bench.timing import Comparison
from tokred.errors import ConfigError, DataError
from tokred.methods import ToMe


@dataclass(frozen=True)
class SpeedBench:
    """What is timed. The defaults are those of the project's speed targets.

    Attributes:
        model: a timm name; the weights are random, which changes nothing about the time.
        rs: the strengths of ToMe.
        batch_size: images a batch.
        num_threads: CPU threads.
        rounds: pairs of timed forward passes for every strength in each process.
        processes: fresh processes for every strength, one after another; 1: this one. What a process cannot change
            about itself, such as where its memory lies, moves the ratio by several per cent on a CPU.
        device: where.
        dtype: float32, bfloat16 or float16.
    """

    model: str = "vit_small_patch16_224"
    rs: tuple[int, ...] = (0, 8, 13, 16)
    batch_size: int = 16
    num_threads: int = 2
    rounds: int = 20
    processes: int = 1
    device: str = "cpu"
    dtype: str = "float32"


def run_bench(bench: SpeedBench, report: Callable[[Explanation], None] | None = None) -> dict[str, Any]:
    """Measure and return a record that JSON can hold: the machine, the settings, one entry for every strength.

    Args:
        bench: what to time.
        report: called with every strength that is done.
    """
    device = require_device(bench.device)
    entries = []
    with threads(bench.num_threads) as number:
        for r in bench.rs:
            parts = _measured(bench, r)
            found = replace(parts[0], measured=Comparison.together([_pairs(part) for part in parts]))
            entries.append(_entry(r, found, [_pairs(part).ratio for part in parts]))
            if report is not None:
                report(found)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "threads": number,
        "versions": versions(),
        "model": bench.model,
        "batch_size": bench.batch_size,
        "dtype": bench.dtype,
        "rounds": bench.rounds,
        "processes": bench.processes,
        "allocator": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "method": "tome",
        "results": entries,
    }


def markdown(record: dict[str, Any]) -> str:
    """The record of :func:`run_bench` as a page."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        f"# Speed of {record['model']} with ToMe",
        "",
        f"{record['device']}, {record['threads']} threads, {record['dtype']}, batch size {record['batch_size']}; "
        f"{versions}; {record['date']}.",
        "",
        f"Unpatched and patched model ran in turn, {record['rounds']} pairs for every r in each of "
        f"{record['processes']} processes; the table gives the median of the ratios and, in brackets, their quartiles. "
        "Ideal is the ratio of the MACs without those of the matching.",
        "",
        *table(record),
    ]
    return "\n".join(lines) + "\n"


def table(record: dict[str, Any]) -> list[str]:
    """The lines of the Markdown table in :func:`markdown`; "by process" is over the ideal."""
    titles = "r|tokens at the end|GMACs|ideal|measured|measured / ideal|by process|images/s before|images/s after"
    lines = [f"| {titles.replace('|', ' | ')} |", "|---:" * (titles.count("|") + 1) + "|"]
    for entry in record["results"]:
        processes = [ratio / entry["ideal"] for ratio in entry["measured_by_process"]]
        lines.append(
            f"| {entry['r']} | {entry['tokens']} | {entry['gmacs']:.2f} | {entry['ideal']:.2f} "
            f"| {entry['measured']:.3f} ({entry['low']:.3f} to {entry['high']:.3f}) "
            f"| {entry['measured_over_ideal']:.3f} | {min(processes):.3f} to {max(processes):.3f} "
            f"| {entry['images_per_second_unpatched']:.1f} | {entry['images_per_second']:.1f} |"
        )
    return lines


def save(
    record: dict[str, Any], path: str | Path, page: Callable[[dict[str, Any]], str] | None = markdown
) -> tuple[Path, ...]:
    """Write a record as JSON at ``path`` and, where there is one, as a page beside it; returns what was written.

    Raises:
        ConfigError: the path does not end in .json.
        DataError: the files cannot be written.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise ConfigError(f"{path}: the result is JSON; give a path that ends in .json. The page is written beside it.")
    texts = {path: json.dumps(record, indent=1) + "\n"}
    if page is not None:
        texts[path.with_suffix(".md")] = page(record)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for place, text in texts.items():
            place.write_text(text)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}).") from error
    return tuple(texts)


def _measured(bench: SpeedBench, r: int) -> list[Explanation]:
    """One strength, once in every process."""
    if bench.processes == 1:
        return [_measure(bench, r)]
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh, max_tasks_per_child=1) as pool:
        return list(pool.map(_measure, [bench] * bench.processes, [r] * bench.processes))


def _measure(bench: SpeedBench, r: int) -> Explanation:
    model = _build(bench.model).to(bench.device, getattr(torch, bench.dtype))
    with threads(bench.num_threads):
        return explain(model, ToMe(r=r), batch_size=bench.batch_size, rounds=bench.rounds, max_seconds=None)


def _pairs(found: Explanation) -> Comparison:
    if found.measured is None:
        raise ValueError("Nothing was measured.")
    return found.measured


def _entry(r: int, found: Explanation, ratios: list[float]) -> dict[str, Any]:
    pairs = _pairs(found)
    low, high = pairs.quartiles
    return {
        "r": r,
        "tokens": found.after.tokens_per_layer[-1],
        "gmacs": found.after.gmacs,
        "ideal": found.ideal,
        "measured": pairs.ratio,
        "low": low,
        "high": high,
        "measured_over_ideal": pairs.ratio / found.ideal,
        "measured_by_process": ratios,
        "images_per_second_unpatched": found.batch_size / pairs.base.median,
        "images_per_second": found.batch_size / pairs.other.median,
        "seconds_unpatched": list(pairs.base.seconds),
        "seconds": list(pairs.other.seconds),
    }


def _build(name: str) -> torch.nn.Module:
    import timm

    if not timm.is_model(name):
        near: Sequence[str] = timm.list_models(f"{name.split('_')[0]}*")[:5]
        raise ConfigError(f"timm has no model {name!r}. Near: {', '.join(near) or 'none'}.")
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False).eval()
