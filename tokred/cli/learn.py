"""``tokred learn``: schedules and knobs that are found by search, and thresholds that are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tokred.cli.console import errors, output, progress_bar
from tokred.cli.knobs import single_values
from tokred.cli.learn_answers import is_for_multimodal, table_of_answers
from tokred.cli.learn_atp import atp
from tokred.cli.learn_diffrate import diffrate
from tokred.errors import ConfigError
from tokred.learn import (
    Front,
    MultimodalSpec,
    Outcome,
    Progress,
    SearchSpec,
    run_multimodal_search,
    run_search,
)

learn = typer.Typer(help="Learn schedules, keep rates and thresholds.", no_args_is_help=True)
learn.command("atp")(atp)
learn.command("diffrate")(diffrate)


@learn.command("search")
def search(
    model: Annotated[
        str,
        typer.Argument(
            help="A shipped model, a timm name, or a folder; a multimodal one for methods in its language model."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(help="Data set, or folder of class folders; for multimodal models questions, or a JSONL file."),
    ],
    method: Annotated[str, typer.Option(help="See: tokred methods.")],
    knob: Annotated[list[str] | None, typer.Option(help="name=value of the method; may be repeated.")] = None,
    space: Annotated[
        str | None,
        typer.Option(help="counts (in a language model: rates): every layer by itself; sigmoid: on a falling curve."),
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(
            help="top1 (of answers: exact_match), or agreement with the unpatched model, which needs no labels."
        ),
    ] = None,
    cost: Annotated[str, typer.Option(help="macs, or latency: measured beside the unpatched model.")] = SearchSpec.cost,
    trials: Annotated[int, typer.Option(help="Schedules to try, in all runs and processes together.")] = 100,
    sampler: Annotated[str, typer.Option(help="nsga2, tpe or random.")] = "nsga2",
    budget_low: Annotated[
        str | None,
        typer.Option(help="The cheapest: 40%, '1.2 GMACs', '50 tokens'; in a language model of its visual tokens."),
    ] = None,
    budget_high: Annotated[str | None, typer.Option(help="The dearest.")] = None,
    split: Annotated[str, typer.Option(help="Part of the data.")] = SearchSpec.split,
    images: Annotated[
        int | None, typer.Option(help="How many images or questions, drawn with the seed.")
    ] = SearchSpec.images,
    batch_size: Annotated[int, typer.Option(help="Images or questions a batch.")] = SearchSpec.batch_size,
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
    wanted = {"space": space, "quality": quality, "budget_low": budget_low, "budget_high": budget_high}
    given = {name: value for name, value in wanted.items() if value is not None}
    folder = out or Path("runs") / f"search-{Path(model).name}-{method}"
    if is_for_multimodal(method):
        if cost != SearchSpec.cost or knob:
            raise ConfigError(f"--cost and --knob are for searches in image encoders, and {method} is for others.")
        answers = MultimodalSpec(
            model, method, data, split=split, questions=images, batch_size=batch_size, threads=num_threads,
            device=device, dtype=dtype, seed=seed,
        )  # fmt: skip
        answers = replace(answers, **given)
        outcome = _run(
            lambda report: run_multimodal_search(answers, folder, trials=trials, sampler=sampler, report=report),
            folder, trials,
        )  # fmt: skip
        table, what = table_of_answers(outcome, folder), "settings"
    else:
        spec = SearchSpec(
            model, method, data, single_values(knob or [], "search"), cost=cost, split=split, images=images,
            batch_size=batch_size, rounds=rounds, threads=num_threads, device=device, dtype=dtype, seed=seed, **given,
        )  # fmt: skip
        outcome = _run(
            lambda report: run_search(
                spec, folder, trials=trials, sampler=sampler, workers=workers, report=report
            ),
            folder, trials,
        )  # fmt: skip
        table, what = _table(outcome, spec, folder), "schedules"
    console = output()
    console.print(table, highlight=False)
    beaten = f"{outcome.tried} {what} were tried, {len(outcome.files)} are beaten by no other"
    console.print(
        f"{beaten}: {folder / 'front'}, {folder / 'search.json'}, {folder / 'pareto.png'}, {folder / 'pareto.html'}.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if outcome.files and what == "schedules":
        console.print(
            f"Measure one on all images: tokred sweep --model {model} --data {data} --method {method} "
            f"--knob schedule={outcome.files[-1]}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _run(start: Callable[[Callable[[Progress], None]], Outcome], folder: Path, trials: int) -> Outcome:
    tried = 0
    with progress_bar() as bar:
        task = bar.add_task("unpatched", total=trials)

        def report(now: Progress) -> None:
            nonlocal tried
            tried = now.tried
            bar.update(task, completed=now.tried + now.share, description=_best(now.front))

        try:
            return start(report)
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


def _table(outcome: Outcome, spec: SearchSpec, folder: Path) -> Table:
    unpatched = outcome.front.unpatched
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
