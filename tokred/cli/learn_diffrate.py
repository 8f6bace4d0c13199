"""``tokred learn diffrate``: a schedule of DiffRate that is learned by gradient inside a frozen model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tokred.cli.console import errors, output, progress_bar
from tokred.learn.diffrate_training import CARD, DiffRateSpec, LearnedRates, train_diffrate
from tokred.train.loop import Step


def diffrate(
    model: Annotated[str, typer.Argument(help="A shipped model, a timm name, or a folder.")],
    data: Annotated[str, typer.Option(help="Data set, or folder of class folders; its labels are needed.")],
    target: Annotated[str, typer.Option(help="What the model may cost: 60%, '2.9 GMACs'.")],
    split: Annotated[str, typer.Option(help="Part of the data.")] = DiffRateSpec.split,
    steps: Annotated[int, typer.Option(help="Steps of the optimizer.")] = DiffRateSpec.steps,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = DiffRateSpec.batch_size,
    learning_rate: Annotated[float, typer.Option(help="At first; it falls to a tenth.")] = DiffRateSpec.learning_rate,
    weight: Annotated[float, typer.Option(help="Of the squared distance from the target.")] = DiffRateSpec.weight,
    unit: Annotated[
        float | None,
        typer.Option(help="GMACs in which it is measured. Left out: as many for every model as for DeiT-S."),
    ] = None,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient of one count.")] = DiffRateSpec.clip,
    granularity: Annotated[int, typer.Option(help="Patches between two counts.")] = DiffRateSpec.granularity,
    start: Annotated[str, typer.Option(help="Rates before training: even (the paper), constant.")] = DiffRateSpec.start,
    holdout: Annotated[int, typer.Option(help="Images set aside for all measurements.")] = DiffRateSpec.holdout,
    shift: Annotated[int, typer.Option(help="Pixels that images are moved by, at most.")] = DiffRateSpec.shift,
    flip: Annotated[bool, typer.Option(help="Mirror images at random.")] = DiffRateSpec.flip,
    bf16: Annotated[bool, typer.Option(help="Autocast to bfloat16 in training.")] = DiffRateSpec.bf16,
    convention: Annotated[str, typer.Option(help="What counts as cost; diffrate: the paper's formula.")] = "full",
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    num_threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")] = None,
    device: Annotated[str, typer.Option(help="Where to run.")] = DiffRateSpec.device,
    seed: Annotated[int, typer.Option(help="Draws the images.")] = DiffRateSpec.seed,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the result. Left out: runs/diffrate-<model>.")] = None,
) -> None:
    """Learn how many tokens DiffRate prunes and merges in every block, for one cost. The model stays as it is.

    Training masks tokens; all reported numbers are of tokens that are really removed, on images that were set aside.
    """
    spec = DiffRateSpec(
        model, data, target, split, steps, batch_size, learning_rate, weight, unit, clip, granularity, start, holdout,
        shift, flip, bf16, convention, num_threads, device, seed,
    )  # fmt: skip
    folder = out or Path("runs") / f"diffrate-{Path(model).name}"
    learned = _run(spec, folder, resume, workers)
    console = output()
    console.print(_table(learned.card), highlight=False)
    console.print(f"{learned.file} and {folder / CARD} are written. In Python:", highlight=False, soft_wrap=True)
    use = f'tokred.patch(model, tokred.DiffRate(schedule="{learned.file}"))'
    console.print(use, highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"Measure it on other images: tokred sweep --model {model} --data {data} --method diffrate "
        f"--knob schedule={learned.file}",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip


def _run(spec: DiffRateSpec, folder: Path, resume: bool, workers: int) -> LearnedRates:
    with progress_bar() as bar:
        task = bar.add_task("loading", total=spec.steps)

        def report(step: Step) -> None:
            found = step.metrics
            told = [f"loss {step.loss:.3f}", f"{found['gmacs']:.3f} GMACs"]
            if "accuracy" in found:
                told.append(f"top-1 {found['accuracy']:.1f}")
            if "held_out_top1" in found:
                told.append(f"held out, tokens removed: {found['held_out_top1']:.1f}")
            bar.update(task, completed=step.number, total=step.total, description=", ".join(told))

        try:
            say = lambda stage: bar.update(task, description=stage)  # noqa: E731
            return train_diffrate(spec, folder, resume=resume, workers=workers, report=report, say=say)
        except KeyboardInterrupt:
            bar.stop()
            errors().print(
                f"Stopped. The checkpoint is in {folder / 'checkpoint'}; the same command with --resume goes on.",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
            raise typer.Exit(130) from None


def _table(card: dict[str, Any]) -> Table:
    title = f"{card['model']} with diffrate on {card['images']} images of {card['data']} ({card['split']})"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("top-1 %", "GMACs", "of all"):
        table.add_column(name, justify="right")
    table.add_column("tokens per layer")
    whole = card["gmacs_unpatched"]
    rows = (
        ("unpatched", card["top1_unpatched"], whole, []),
        ("target", None, card["limit_gmacs"], []),
        ("learned", card["top1"], card["gmacs"], card["tokens_per_layer"]),
    )
    for name, top1, gmacs, tokens in rows:
        share = f"{100 * gmacs / whole:.1f}%"
        table.add_row(name, "-" if top1 is None else f"{top1:.2f}", f"{gmacs:.3f}", share, " ".join(map(str, tokens)))
    return table
