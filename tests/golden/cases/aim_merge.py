"""AIM: rounds of merging before the language model."""

from __future__ import annotations

import torch

from tokred.layout import VisualLayout
from tokred.methods.aim import AIMMerge, merge_round

from ..case import Case, checks
from ..compare import close, same
from ..features import view


@checks("aim", lambda case: case.has("x", "src_1", "dst_1", "merged_1"))
def check_merging(case: Case) -> None:
    """Every round by itself, and all of them as one map."""
    x, rounds = case["x"], [int(r) for r in case.hyper["r_per_iteration"]]
    tokens = x
    for number, count in enumerate(rounds, start=1):
        step = merge_round(tokens, count)
        same(step.moved // 2, case[f"src_{number}"], f"src_{number}")
        alone = (tokens.shape[1] + 1) // 2 - count
        same(step.into - alone, case[f"dst_{number}"], f"dst_{number}")
        tokens = step.apply(tokens)
        close(tokens, case[f"merged_{number}"], f"merged_{number}")
    method, layout = AIMMerge(rounds=tuple(rounds)), VisualLayout.plain((1, x.shape[1]))
    merged = torch.cat([method.reduce(view(layout, features=image)).apply(image.unsqueeze(0)) for image in x])
    close(merged, case[f"merged_{len(rounds)}"], "all rounds at once", absolute=1e-5)
