"""DivPrune: the most diverse tokens."""

from __future__ import annotations

from tokred.layout import VisualLayout
from tokred.methods.divprune import DivPrune, max_min

from ..case import Case, checks
from ..compare import same
from ..features import view


@checks("divprune", lambda case: case.has("x", "selected_order", "kept_indices"))
def check_divprune(case: Case) -> None:
    """The order of the choice, and what stays of it."""
    x, method = case["x"], DivPrune(keep=float(case.hyper["ratio"]))
    assert method.count(1, len(x)) == case.hyper.get("keep", method.count(1, len(x)))
    same(max_min(x.unsqueeze(0), method.count(1, len(x)))[0], case["selected_order"], "selected_order")
    image = view(VisualLayout.plain((1, len(x))), features=x)
    same(method.reduce(image).kept[0], case["kept_indices"], "kept_indices")
