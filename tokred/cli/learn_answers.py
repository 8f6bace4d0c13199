"""What ``tokred learn search`` shows of a search between the layers of a language model."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from tokred.learn import Outcome
from tokred.methods import methods


def is_for_multimodal(method: str) -> bool:
    """Whether the method acts in multimodal models, outside of their image encoder."""
    return getattr(methods(None).get(method), "place", "encoder") != "encoder"


def table_of_answers(outcome: Outcome, folder: Path) -> Table:
    """The front, from the cheapest setting to the unpatched model."""
    spec, unpatched = outcome.front.spec, outcome.front.unpatched
    table = Table(
        title=f"{spec.model} with {spec.method} on {unpatched['images']} questions of {spec.data}",
        title_justify="left",
    )
    table.add_column("knobs")
    for title in ("prefill GMACs", "of all", "exact match %", "agree %"):
        table.add_column(title, justify="right")
    table.add_column("visual tokens per layer")
    lines = [("unpatched", unpatched), *((trial.label, trial.columns) for trial in outcome.front.best)]
    names = ["unpatched", *(str(path.relative_to(folder)) for path in outcome.files)]
    for name, (label, columns) in zip(names, lines, strict=True):
        mark = "" if label == "unpatched" or label.startswith("trial") else f" ({label})"
        table.add_row(
            escape(name + mark),
            f"{columns['gmacs']:.3f}",
            f"{100 * columns['gmacs'] / unpatched['gmacs']:.1f}%",
            f"{columns['exact_match']:.2f}",
            f"{columns['agreement']:.2f}",
            " ".join(map(str, columns["tokens_per_layer"])),
            style="bold" if label == "unpatched" else None,
        )
    return table
