"""P-Sigmoid: the curve for a budget, and the counts that it gives."""

from __future__ import annotations

import torch

from tokred.methods.p_sigmoid import PSigmoid, keep_counts, midpoint

from ..case import Case, checks
from ..compare import close, same


@checks("p_sigmoid", lambda case: case.has("midpoint", "keep_rate", "keep_count"))
def check_curve(case: Case) -> None:
    """Midpoint, rates, counts."""
    hyper = case.hyper
    depth, budget, steepness = hyper["layers"], hyper["budget"], hyper["steepness"]
    close(torch.tensor([midpoint(depth, budget, steepness)]), case["midpoint"], "midpoint")
    rates = PSigmoid(budget=budget, steepness=steepness).curve(depth)
    close(torch.tensor(rates), case["keep_rate"], "keep_rate")
    assert hyper["rounding"] == "nearest"
    same(torch.tensor(keep_counts(rates, hyper["n_visual"])), case["keep_count"], "keep_count")
