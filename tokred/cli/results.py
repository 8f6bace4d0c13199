"""``tokred plot``, ``report``, ``compare`` and ``merge``: what to do with the results of sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokred.cli.console import output
from tokred.cli.tables import difference_table
from tokred.sweep import AXES, compare_results, merge_results, plot_results, write_report


def plot(
    folder: Annotated[Path, typer.Argument(help="Where a sweep put its results.")],
    x: Annotated[str, typer.Option(help=f"One of {', '.join(AXES)}.")] = "speedup",
    y: Annotated[str, typer.Option(help="Likewise.")] = "top1",
    out: Annotated[Path | None, typer.Option(help="Where to write, without ending. Left out: in the folder.")] = None,
) -> None:
    """Draw the results of a sweep with their Pareto front, as a picture (PNG) and as a page (HTML)."""
    for path in plot_results(folder, x, y, out):
        output().print(str(path), highlight=False, soft_wrap=True)


def report(
    folder: Annotated[Path, typer.Argument(help="Where a sweep put its results.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file. Left out: report.html in the folder.")
    ] = None,
) -> None:
    """Write one page with fronts, tokens, speed-ups, worst images, a table and failures; it needs no network."""
    output().print(str(write_report(folder, out)), highlight=False, soft_wrap=True)


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(help="Folder of another run of the same points.")],
    alpha: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Chance of one false alarm among the qualities.")
    ] = 0.05,
    everything: Annotated[bool, typer.Option("--all", help="Show what is within the noise, too.")] = False,
) -> None:
    """Say which differences between two runs are outside the noise.

    Accuracy is tested by McNemar's exact test where both runs kept which images are right, otherwise as two
    proportions, corrected by Holm. A speed-up differs where the middle halves of its timed pairs are apart.
    """
    found = compare_results(first, second, alpha)
    real = [difference for difference in found if difference.is_real]
    console = output()
    if everything or real:
        console.print(difference_table(found if everything else real), highlight=False)
    console.print(f"{len(real)} of {len(found)} differences are outside the noise.", highlight=False, soft_wrap=True)


def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders with results, such as those of several machines.")],
    out: Annotated[Path, typer.Option(help="Folder for all of them; may be one of them, or hold results already.")],
) -> None:
    """Put the results of several folders into one; a finished point wins over a failed one, a later over an earlier."""
    merged = merge_results(folders, out)
    output().print(
        f"{merged.points} points are in {out}, {merged.finished} of them finished; {merged.taken} came in, and "
        f"{merged.replaced} were there more than once.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
