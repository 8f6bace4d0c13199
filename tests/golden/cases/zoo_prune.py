"""ZOO-Prune: sensitivity from given directions, and the greedy choice."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tokred.methods.zoo_prune import choose, sensitivity

from ..case import Case, checks
from ..compare import close, same


@checks("zoo_prune", lambda case: case.has("x", "noise", "proj_w1", "sensitivity"))
def check_sensitivity(case: Case) -> None:
    """From features and directions to what stays."""
    hyper = case.hyper
    assert len(case["noise"]) == hyper["directions"]

    def project(x: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(x, case["proj_w1"], case["proj_b1"]))
        return F.linear(hidden, case["proj_w2"], case["proj_b2"])

    projected = project(case["x"])
    close(projected, case["projected"], "projected")
    score = sensitivity(project, case["x"].unsqueeze(0), case["noise"], hyper["step_h"])
    close(score[0], case["sensitivity"], "sensitivity", relative=2e-3)
    order = choose(score, projected.unsqueeze(0), hyper["keep"])[0]
    same(order, case["selected_order"], "selected_order")
    same(order.sort().values, case["kept_indices"], "kept_indices")


@checks("zoo_prune", lambda case: case.has("sensitivity", "projected", "selected_order") and not case.has("noise"))
def check_choice(case: Case) -> None:
    """From sensitivities to what stays of every tile."""
    order = choose(case["sensitivity"], case["projected"], case.hyper["keep_per_tile"])
    same(order, case["selected_order"], "selected_order")
    same(order.sort(dim=1).values, case["kept_indices"], "kept_indices")
