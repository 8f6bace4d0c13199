"""``tokred learn atp``: thresholds of ATP that are trained inside a frozen multimodal model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tokred.cli.console import errors, output, progress_bar
from tokred.cli.knobs import single_values
from tokred.learn.atp_training import CARD, ATPSpec, Learned, train_atp
from tokred.train.loop import Step


def atp(
    model: Annotated[str, typer.Option(help="A shipped multimodal model, a folder, or an id of the hub.")],
    data: Annotated[str, typer.Option(help="Set of questions, or a JSONL file.")],
    target: Annotated[str, typer.Option(help="Visual tokens behind a module, on average: 64, or a share: 25%.")],
    knob: Annotated[list[str] | None, typer.Option(help="name=value of ATP; may be repeated.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data. Left out: train, where there is one.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the optimizer.")] = ATPSpec.steps,
    batch_size: Annotated[int, typer.Option(help="Questions a step.")] = ATPSpec.batch_size,
    learning_rate: Annotated[float, typer.Option(help="At its highest.")] = ATPSpec.learning_rate,
    holdout: Annotated[int, typer.Option(help="Questions set aside for all measurements.")] = ATPSpec.holdout,
    lambda_atp: Annotated[float, typer.Option(help="Weight of the depth term.")] = ATPSpec.lambda_atp,
    lambda_target: Annotated[float, typer.Option(help="Weight of the distance from the target.")] = (
        ATPSpec.lambda_target
    ),
    num_threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")] = None,
    device: Annotated[str, typer.Option(help="Where to run.")] = ATPSpec.device,
    seed: Annotated[int, typer.Option(help="Draws the questions.")] = ATPSpec.seed,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the result. Left out: runs/atp-<model>.")] = None,
) -> None:
    """Train the thresholds of ATP in a multimodal model, whose own weights stay as they are.

    Training masks tokens softly; all reported numbers are of tokens that are really dropped.
    """
    spec = ATPSpec(
        model, data, target, single_values(knob or [], "training"), split, steps, batch_size, learning_rate, holdout,
        lambda_atp, lambda_target, num_threads, device, seed,
    )  # fmt: skip
    folder = out or Path("runs") / f"atp-{Path(model).name}"
    learned = _run(spec, folder, resume)
    console = output()
    console.print(_table(learned.card), highlight=False)
    knobs = {**learned.card["knobs"], "weights": str(learned.weights)}
    written = ", ".join(f"{n}={tuple(v) if isinstance(v, list) else v!r}" for n, v in knobs.items())
    console.print(f"{learned.weights} and {folder / CARD} are written. In Python:", highlight=False, soft_wrap=True)
    console.print(f"tokred.patch(model, tokred.ATP({written}))", highlight=False, soft_wrap=True, markup=False)


def _run(spec: ATPSpec, folder: Path, resume: bool) -> Learned:
    with progress_bar() as bar:
        task = bar.add_task("loading", total=spec.steps)

        def report(step: Step) -> None:
            measured = ", ".join(f"{name} {value:.1f}" for name, value in step.metrics.items())
            state = f"loss {step.loss:.2f}{f', dropping: {measured}' if measured else ''}"
            bar.update(task, completed=step.number, total=step.total, description=state)

        try:
            say = lambda stage: bar.update(task, description=stage)  # noqa: E731
            return train_atp(spec, folder, resume=resume, report=report, say=say)
        except KeyboardInterrupt:
            bar.stop()
            errors().print(
                f"Stopped. The checkpoint is in {folder / 'checkpoint'}; the same command with --resume goes on.",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
            raise typer.Exit(130) from None


def _table(card: dict[str, Any]) -> Table:
    title = f"{card['model']} with atp on {card['questions']} questions of {card['data']} ({card['split']})"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("exact match %", "visual tokens", "of all"):
        table.add_column(name, justify="right")
    table.add_column("visual tokens per layer")
    all_of_them = card["visual_tokens"]
    depth = len(card["visual_tokens_per_layer"])
    rows = (
        ("unpatched", card["exact_match_unpatched"], all_of_them, [all_of_them] * depth),
        ("target", None, card["target"], []),
        ("trained", card["exact_match"], card["kept"], card["visual_tokens_per_layer"]),
    )
    for name, right, kept, layers in rows:
        table.add_row(
            name,
            "-" if right is None else f"{right:.2f}",
            f"{kept:.1f}",
            f"{100 * kept / all_of_them:.1f}%",
            " ".join(f"{count:.0f}" for count in layers),
        )
    return table
