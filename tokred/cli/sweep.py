"""``tokred sweep``: the main job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tokred.cli.console import errors, output, progress_bar
from tokred.cli.knobs import parse_knobs
from tokred.cli.tables import duration, planned_table, print_complaints, result_tables
from tokred.errors import ConfigError
from tokred.methods import untrained_methods
from tokred.sweep import (
    Document,
    Engine,
    Progress,
    SweepSpec,
    create_engine,
    create_sink,
    estimate_seconds,
    fronts,
    load_document,
    parse_spec,
    preview,
    run_sweep,
)

_DEFAULT_BUDGETS = ["80%", "65%", "50%"]


def sweep(
    config: Annotated[str | None, typer.Argument(help="A YAML file, or a shipped sweep such as 'quickstart'.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Shipped model, timm name or folder; may be repeated.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Data set, or folder of class folders; may be repeated.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Method; may be repeated. Left out: all of them.")] = None,
    knob: Annotated[
        list[str] | None, typer.Option(help="name=value; given several times, each value is tried.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data.")] = None,
    images: Annotated[int | None, typer.Option(help="How many images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a batch.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Timed pairs of forward passes a point.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read images.")] = None,
    num_threads: Annotated[int | None, typer.Option("--threads", help="CPU threads.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. Left out: runs/<name of the sweep>.")
    ] = None,
    worst: Annotated[int | None, typer.Option(help="Pictures to keep of each point, of images gone wrong.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Measured as well: knn, probe, cosine, energy, rss; may be repeated.")
    ] = None,
    throughput: Annotated[
        list[int] | None, typer.Option(help="Batch size to measure images per second at, too; may be repeated.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="local: on this machine; ray: on a Ray cluster (extra 'cluster').")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Points measured side by side here. Left out: one, or one for every GPU.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster that runs, or 'auto'. Left out: one is started here.")
    ] = None,
    shards: Annotated[int | None, typer.Option(help="Tasks that the images of one point are split over.")] = None,
    sink: Annotated[str | None, typer.Option(help="Show every point there as well: trackio (extra 'trackio').")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what is finished, measure the rest.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the points and their cost, and stop.")] = False,
) -> None:
    """Measure accuracy, speed, memory and MACs of methods on models and images. Options override the file."""
    given = {
        "models": model, "data": data, "split": split, "images": images, "batch_size": batch_size, "rounds": rounds,
        "workers": workers, "threads": num_threads, "device": device, "dtype": dtype, "engine": engine,
        "shards": shards, "processes": processes, "worst": worst, "metrics": metric, "throughput": throughput,
    }  # fmt: skip
    spec = parse_spec(_document(config, given, method or [], knob or []))
    folder = out or Path("runs") / (Path(config).stem if config else Path(spec.models[0]).name)
    if dry_run:
        _print_plan(spec)
        return
    show = None if sink is None else create_sink(sink, folder.name)
    rows = _run(spec, folder, create_engine(spec.engine, address, spec.processes, spec.device), resume, show)
    console = output()
    for table in result_tables(rows):
        console.print(table, highlight=False)
    failed = print_complaints(console, rows)
    outcome = f"{len(rows) - failed} of {len(rows)} points are in {folder}"
    axes = [f" Draw them: tokred plot {folder} --x {x} --y {y}" for x, y in fronts(rows)[:1]]
    advice = "".join(axes) if failed < len(rows) else " All failed."
    console.print(f"{outcome}.{advice}", highlight=False, soft_wrap=True)
    if failed == len(rows):
        raise typer.Exit(1)


def _print_plan(spec: SweepSpec) -> None:
    planned = preview(spec)
    seconds = estimate_seconds(spec, planned)
    known = [time for time in seconds if time is not None]
    console = output()
    console.print(planned_table(planned, seconds), highlight=False)
    text = f"{len(planned)} points."
    if known:
        text += f" About {duration(sum(known))} at the speed of this machine as it is now, images being read in time."
    else:
        text += " No estimate of the time: the data, or the device, or the cost of a point is not known here."
    console.print(text, highlight=False, soft_wrap=True)


def _document(config: str | None, given: dict[str, Any], names: Sequence[str], knobs: Sequence[str]) -> Document:
    """The file with the options over it, or the options alone."""
    values = {key: value for key, value in given.items() if value is not None}
    written = {name: v[0] if len(v) == 1 else {"grid": v} for name, v in parse_knobs(knobs).items()}
    if config is None and not ("models" in values and "data" in values):
        raise ConfigError("Give a sweep file (such as: tokred sweep quickstart), or both --model and --data.")
    if written and not names:
        raise ConfigError("A --knob belongs to a method; name it with --method.")
    if names:
        values["methods"] = [{"method": name, **written} for name in names]
    elif config is None:
        values["methods"] = [{"method": name, "budget": {"grid": _DEFAULT_BUDGETS}} for name in untrained_methods()]
    if config is None:
        return Document(values)
    document = load_document(config)
    if not values:
        return document
    if not isinstance(document.content, dict):
        return document
    lines = {place: line for place, line in document.lines.items() if place[0] not in values}
    return Document({**document.content, **values}, document.name, lines)


def _show(show: Callable[[dict[str, Any]], None], row: dict[str, Any], folder: Path) -> None:
    """Whatever a foreign dashboard raises, the sweep goes on; the row is in the folder by then."""
    try:
        show(row)
    except Exception as error:
        point = f"{row['method']} {row['label']}".strip()
        errors().print(f"{point} is in {folder}, but the sink did not take it: {error}", markup=False, soft_wrap=True)


def _run(
    spec: SweepSpec, folder: Path, engine: Engine, resume: bool, show: Callable[[dict[str, Any]], None] | None
) -> list[dict[str, Any]]:
    finished: set[str] = set()
    with progress_bar() as bar:
        task = bar.add_task("", total=len(spec.points()))

        def report(now: Progress) -> None:
            if now.row is not None and now.row["status"] == "finished":
                finished.add(now.point.key)
            if now.row is not None and not now.resumed and show is not None:
                _show(show, now.row, folder)
            bar.update(task, completed=now.completed, description=str(now.point))

        try:
            return run_sweep(spec, folder, resume=resume, engine=engine, report=report)
        except KeyboardInterrupt:
            bar.stop()
            errors().print(
                f"Stopped. {len(finished)} of {len(spec.points())} points are finished and kept in {folder}; "
                "the same command with --resume goes on.",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
            raise typer.Exit(130) from None
