"""``tokred explain``: what a method does to a model, and whether it pays."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokred import bench
from tokred.assets import load_model
from tokred.bench.machine import device_name, require_device, threads
from tokred.cli.console import errors, output
from tokred.cli.knobs import build_method
from tokred.cost import CONVENTIONS
from tokred.ops.dispatch import describe


def explain(
    model: Annotated[str, typer.Argument(help="A shipped model, a timm name, or a folder.")],
    method: Annotated[str, typer.Option(help="See: tokred methods.")] = "tome",
    knob: Annotated[
        list[str] | None, typer.Option(help="name=value, such as r=13; may be repeated. Short: --r 13.")
    ] = None,
    measure: Annotated[bool, typer.Option(help="Run the model too, not only count.")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Timed pairs of forward passes, unpatched and patched.")] = 10,
    num_threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")] = None,
    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu",
) -> None:
    """Show tokens and MACs layer by layer, the adapter, the ideal and the measured speed-up; says if it will not pay.

    timm models are built with random weights: counts and times do not depend on them.
    """
    built = build_method(method, knob or [])
    where = require_device(device)
    network = load_model(model, pretrained=False).to(where)
    with threads(num_threads) as used, errors().status("measuring ..."):
        found = bench.explain(network, built, measure=measure, batch_size=batch_size, rounds=rounds)
    console = output()
    knobs = ", ".join(f"{name}={value!r}" for name, value in built.describe().items())
    _say(console, f"[bold]{model}[/] with [bold]{built.name}[/]" + escape(f" ({knobs})" if knobs else ""))
    _say(
        console,
        f"adapter {found.adapter}.{found.tower}: {found.shape.depth} blocks, {found.shape.num_tokens} tokens, "
        f"{found.shape.num_prefix} of them prefix; acts at the site '{built.site}'",
    )
    dtype = next(network.parameters()).dtype
    _say(console, escape(f"matching and merging run in: {describe(where, dtype)}"))
    console.print(_layers(found))
    bound = " at most (decides for every image)" if built.adaptive else ""
    _say(
        console,
        f"GMACs per image: {found.before.gmacs:.3f} before, {found.after.gmacs:.3f} after{bound}; "
        f"{found.after.reduction_macs / 1e9:.4f} of them for deciding",
    )
    _say(console, f"[dim]counted: {CONVENTIONS[found.before.convention]}; 1 MAC = 2 FLOPs[/]")
    _say(console, f"ideal speed-up (ratio of MACs, deciding free): {found.ideal:.2f}x")
    if found.measured is not None:
        pairs, (low, high) = found.measured, found.measured.quartiles
        _say(
            console,
            f"measured speed-up: {pairs.ratio:.2f}x (middle half {low:.2f} to {high:.2f}, {len(pairs.ratios)} pairs); "
            f"{batch_size / pairs.base.median:.1f} -> {batch_size / pairs.other.median:.1f} images/s, "
            f"batch {batch_size}, {device_name(where)}, {used} threads",
        )
    colour = {True: "green", False: "red", None: "yellow"}[found.pays]
    _say(console, f"[bold {colour}]{found.verdict}[/]")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _layers(found: bench.Explanation) -> Table:
    table = Table("block", "tokens in", "tokens out", "MMACs before", "MMACs after", "for deciding")
    for column in table.columns:
        column.justify = "right"
    for index, (before, after) in enumerate(zip(found.before.layers, found.after.layers, strict=True)):
        table.add_row(
            str(index),
            str(after.tokens_in),
            str(after.tokens_out),
            f"{before.macs / 1e6:.1f}",
            f"{(after.macs + after.reduction_macs) / 1e6:.1f}",
            f"{after.reduction_macs / 1e6:.2f}" if after.reduction_macs else "",
        )
    return table
