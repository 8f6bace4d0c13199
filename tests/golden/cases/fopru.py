"""FoPru: both means of the attention, the choice between them, both strategies."""

from __future__ import annotations

import torch

from tokred.layout import VisualLayout
from tokred.methods.fopru import FoPru, row_scores, significance

from ..case import Case, checks
from ..compare import close, same
from ..features import square, view


@checks("fopru", lambda case: case.has("attention", "kept_indices", "significance"))
def check_fopru(case: Case) -> None:
    """All steps from the attention to the kept patches, image by image."""
    hyper = case.hyper
    grid = tuple(hyper["grid"])
    attention = square(case["attention"], bool(hyper["has_cls"]))
    method = FoPru(keep=float(hyper["ratio"]), strategy=hyper["strategy"])
    images = [view(VisualLayout.plain(grid), attention, image=image) for image in range(len(case["attention"]))]
    received, given = torch.cat([v.received() for v in images]), torch.cat([v.given() for v in images])
    close(received, case["significance_received"], "significance_received")
    close(given, case["significance_given"], "significance_given")
    spread = torch.stack([received.var(dim=1), given.var(dim=1)], dim=1)
    close(spread, case["variances"], "variances", relative=1e-3, absolute=1e-10)
    score, which = significance(received, given)
    same(which, case["chosen_dim"], "chosen_dim")
    close(score, case["significance"], "significance")
    close(row_scores(score, grid), case["row_scores"], "row_scores")
    kept = torch.cat([method.reduce(v).kept for v in images])
    same(kept, case["kept_indices"], "kept_indices")
    if case.has("kept_rows"):
        same(kept[:, :: grid[1]] // grid[1], case["kept_rows"], "kept_rows")
