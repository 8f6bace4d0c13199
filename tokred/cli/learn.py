"""``tokred learn``: schedules that are found by search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tokred.cli.console import errors, output, progress_bar
from tokred.cli.knobs import parse_knobs
from tokred.errors import ConfigError
from tokred.learn import Front, Outcome, Progress, SearchSpec, run_search

learn = typer.Typer(help="Learn schedules.", no_args_is_help=True)


@learn.command("search")
def search(
    model: Annotated[str, typer.Argument(help="A shipped model, a timm name, or a folder.")],
    data: Annotated[str, typer.Option(help="Data set, or folder of class folders.")],
    method: Annotated[str, typer.Option(help="See: tokred methods.")],
    knob: Annotated[list[str] | None, typer.Option(help="name=value of the method; may be repeated.")] = None,
    space: Annotated[
        str, typer.Option(help="counts: every layer by itself; sigmoid: keep rates on a falling curve.")
    ] = SearchSpec.space,
    quality: Annotated[
        str, typer.Option(help="top1, or agreement with the unpatched model, which needs no labels.")
    ] = SearchSpec.quality,
    cost: Annotated[str, typer.Option(help="macs, or latency: measured beside the unpatched model.")] = SearchSpec.cost,
    trials: Annotated[int, typer.Option(help="Schedules to try, in all runs and processes together.")] = 100,
    sampler: Annotated[str, typer.Option(help="nsga2, tpe or random.")] = "nsga2",
    budget_low: Annotated[str, typer.Option(help="The cheapest schedules: 40%, '1.2 GMACs', '50 tokens'.")] = (
        SearchSpec.budget_low
    ),
    budget_high: Annotated[str, typer.Option(help="The dearest.")] = SearchSpec.budget_high,
    split: Annotated[str, typer.Option(help="Part of the data.")] = SearchSpec.split,
    images: Annotated[int | None, typer.Option(help="How many images, drawn with the seed.")] = SearchSpec.images,
    batch_size: Annotated[int, typer.Option(help="Images a batch.")] = SearchSpec.batch_size,
    rounds: Annotated[int, typer.Option(help="Timed pairs of forward passes a schedule.")] = SearchSpec.rounds,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    num_threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")] = None,
    device: Annotated[str, typer.Option(help="Where to run.")] = SearchSpec.device,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = SearchSpec.dtype,
    seed: Annotated[int, typer.Option(help="Draws the images and the choices.")] = SearchSpec.seed,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the search. Left out: runs/search-<model>-<method>.")
    ] = None,
) -> None:
    """Search for schedules of a method: the best quality at every cost. Starts from the method's own law.

    The same command goes on with an interrupted search, and joins a running one from another terminal or machine.
    """
    spec = SearchSpec(
        model, method, data, _knobs(knob or []), space, quality, cost, budget_low, budget_high,
        split, images, batch_size, rounds, num_threads, device, dtype, seed,
    )  # fmt: skip
    folder = out or Path("runs") / f"search-{Path(model).name}-{method}"
    outcome = _run(spec, folder, trials, sampler, workers)
    console = output()
    console.print(_table(outcome, folder), highlight=False)
    beaten = f"{outcome.tried} schedules were tried, {len(outcome.files)} are beaten by no other"
    console.print(
        f"{beaten}: {folder / 'front'}, {folder / 'search.json'}, {folder / 'pareto.png'}, {folder / 'pareto.html'}.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if outcome.files:
        console.print(
            f"Measure one on all images: tokred sweep --model {model} --data {data} --method {method} "
            f"--knob schedule={outcome.files[-1]}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _knobs(written: list[str]) -> dict[str, object]:
    knobs: dict[str, object] = {}
    for name, values in parse_knobs(written).items():
        if len(values) > 1:
            raise ConfigError(f"The knob {name!r} is given {len(values)} times; a search takes one value.")
        knobs[name] = tuple(values[0]) if isinstance(values[0], list) else values[0]
    return knobs


def _run(spec: SearchSpec, folder: Path, trials: int, sampler: str, workers: int) -> Outcome:
    tried = 0
    with progress_bar() as bar:
        task = bar.add_task("unpatched", total=trials)

        def report(now: Progress) -> None:
            nonlocal tried
            tried = now.tried
            bar.update(task, completed=now.tried + now.share, description=_best(now.front))

        try:
            return run_search(spec, folder, trials=trials, sampler=sampler, workers=workers, report=report)
        except KeyboardInterrupt:
            bar.stop()
            errors().print(
                f"Stopped. {tried} of {trials} trials are done and kept, with the front so far, in {folder}; "
                "the same command goes on.",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
            raise typer.Exit(130) from None


def _best(front: Front) -> str:
    """Both ends of what has been found."""
    best = front.best
    if not best:
        return "nothing found yet"
    cost, quality = front.spec.axes
    ends = dict.fromkeys(
        f"{trial.columns[quality.column]:.2f} at {trial.columns[cost.column]:.3f} {cost.column}"
        for trial in (best[0], best[-1])
    )
    return f"{len(best)} on the front, {quality.column} {' to '.join(ends)}"


def _table(outcome: Outcome, folder: Path) -> Table:
    spec, unpatched = outcome.front.spec, outcome.front.unpatched
    timed = spec.cost == "latency"
    table = Table(
        title=f"{spec.model} with {spec.method} on {unpatched['images']} images of {spec.data}", title_justify="left"
    )
    table.add_column("schedule")
    for title in ("GMACs", "of all", *(["speed-up"] if timed else []), "top-1 %", "agree %"):
        table.add_column(title, justify="right")
    table.add_column("tokens per layer")
    lines = [("unpatched", unpatched), *((trial.label, trial.columns) for trial in outcome.front.best)]
    names = ["unpatched", *(str(path.relative_to(folder)) for path in outcome.files)]
    for name, (label, columns) in zip(names, lines, strict=True):
        mark = "" if label == "unpatched" or label.startswith("trial") else f" ({label})"
        table.add_row(
            escape(name + mark),
            f"{columns['gmacs']:.3f}",
            f"{100 * columns['gmacs'] / unpatched['gmacs']:.1f}%",
            *([f"{columns['speedup']:.2f}x"] if timed else []),
            "-" if columns["top1"] is None else f"{columns['top1']:.2f}",
            f"{columns['agreement']:.2f}",
            " ".join(map(str, columns["tokens_per_layer"])),
            style="bold" if label == "unpatched" else None,
        )
    return table
