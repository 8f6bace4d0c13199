"""``tokred train``: run a training recipe."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tokred.cli.knobs import single_values


def train(
    config: Annotated[Path, typer.Argument(help="The recipe, for example configs/train/vit_fmnist.yaml.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and the finished model. Default: runs/train/<name>.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Put this method into the model.")] = None,
    knob: Annotated[list[str] | None, typer.Option(help="One of its knobs: keep=0.5, or simply --keep 0.5.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and stop.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: torch's choice.")] = None,
) -> None:
    """Train a model from a recipe, then measure the exported file on the test set.

    Ctrl-C keeps a checkpoint; --resume goes on from it.
    """
    import torch

    from tokred.train import parallel
    from tokred.train.config import load_spec, with_method
    from tokred.train.loop import Step, train_model
    from tokred.train.tasks import build_task

    if threads is not None:
        torch.set_num_threads(threads)
    spec = load_spec(config)
    if method is not None or knob:
        spec = with_method(spec, method, single_values(knob or [], "training"))
    if dry_run:
        from tokred.train.plan import plan

        for name, value in plan(spec).items():
            Console().print(f"{name}: {value}", highlight=False)
        return
    folder = output if output is not None else Path("runs/train") / spec.name
    with parallel.joined():
        task = build_task(spec)
        is_first = parallel.is_first()
        console = Console(quiet=not is_first)
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
        )
        with progress:
            bar = progress.add_task(spec.name, total=None, state="")

            def report(step: Step) -> None:
                measured = "  ".join(f"{name} {value:.2f}" for name, value in step.metrics.items())
                state = f"loss {step.loss:.3f}  {step.images_per_second:.0f} img/s  {measured}"
                progress.update(bar, completed=step.number, total=step.total, state=state)

            try:
                model = train_model(task, spec.loop, folder, resume=resume, report=report)
            except KeyboardInterrupt:
                progress.stop()
                console.print(f"Stopped. The checkpoint is in {folder}; go on with: tokred train {config} --resume")
                raise typer.Exit(130) from None
    if not is_first:
        return
    console.print(f"Measuring the exported file in {folder / 'model'} on the test set ...")
    for name, value in task.export(model, folder / "model").items():
        console.print(f"{name}: {value:.2f}")
