"""EViT and Top-K: a whole block."""

from __future__ import annotations

import torch

from tokred import Schedule
from tokred.methods.base import Method
from tokred.methods.evit import EViT
from tokred.methods.topk import TopK

from ..case import Case, checks
from ..compare import near, run_block, same, shape_of


def _is_block(case: Case) -> bool:
    return case.has("x", "y", "kept", "cls_attention") and "k" in case.hyper


@checks("topk", _is_block)
def check_topk(case: Case) -> None:
    """The patches that stay, in the order of their score."""
    _check(case, TopK(keep=float(case.hyper["keep_rate"]), layers=(0,)), fused=0)


@checks("evit", _is_block)
def check_evit(case: Case) -> None:
    """The patches that stay, in the order of their score, and the fused token behind them."""
    _check(case, EViT(keep=float(case.hyper["keep_rate"]), layers=(0,)), fused=1)


def _check(case: Case, method: Method, fused: int) -> None:
    count, patches = case.hyper["k"], case["x"].shape[1] - 1
    if case.hyper.get("initial_patches") == patches:
        assert method.plan(shape_of(patches + 1, 1)).stay(0)["prune"] == 1 + count + fused
    # a later block: the share is one of the initial patches, which are more
    schedule = Schedule({"prune": (1 + count + fused,)})
    y, state, view = run_block(case, method.with_(schedule=schedule))
    token_map = state.steps[-1].map
    near(view.class_attention(), case["cls_attention"], "cls_attention")
    kept = case["kept"]
    same(token_map.kept[:, 1 : 1 + count] - 1, kept, "kept")
    if case.has("complement"):
        wanted = case["complement"]
        fused_patches = torch.cat([token_map.kept[:, 1 + count :], token_map.moved], dim=1) - 1
        same(fused_patches.sort(dim=1).values, wanted, "complement")
    near(y, case["y"], "y")
