"""One row of attention, of a class token or of the last word of a prompt."""

from __future__ import annotations

from tokred import ops

from ..case import Case, checks
from ..compare import close


@checks("attention_row", lambda case: case.has("q", "k", "attention"))
def check_row(case: Case) -> None:
    """The row, and its mean and sum over the heads."""
    assert case.hyper.get("scale", "head_dim**-0.5") == "head_dim**-0.5"
    row = ops.attention_row(case["q"], case["k"], case["q"].shape[-1] ** -0.5)
    close(row, case["attention"], "attention")
    if case.has("mean_heads"):
        close(row.mean(dim=1), case["mean_heads"], "mean_heads")
    if case.has("sum_heads"):
        close(row.sum(dim=1), case["sum_heads"], "sum_heads")
