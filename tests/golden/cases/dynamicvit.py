"""DynamicViT: the predictor, and what stays."""

from __future__ import annotations

import torch

from tokred import LayerView
from tokred.methods.dynamicvit import DynamicViT, DynamicViTPart

from ..case import Case, checks
from ..compare import near, same, shape_of


@checks("dynamicvit", lambda case: case.has("x", "scores", "kept"))
@torch.no_grad()
def check_predictor(case: Case) -> None:
    """Log probabilities with and without decisions before, and the order of the kept patches."""
    x, hyper = case["x"], case.hyper
    part = DynamicViTPart(x.shape[2]).eval()
    part.load_state_dict(case.state_dict())
    near(part(x), case["scores"], "scores")
    if case.has("policy"):
        near(part(x, case["policy"].squeeze(2)), case["scores_masked"], "scores_masked")
    method = DynamicViT(keep=float(hyper["token_ratio"]), layers=(0,))
    stay = method.plan(shape_of(hyper["initial_patches"], 0)).stay(0)
    assert stay["prune"] == hyper["k"]
    same(method.reduce(LayerView(x, stay=stay, module=part)).kept, case["kept"], "kept")
