"""PatchMerger, SiT and Sinkhorn: slots that are mixtures of all patches."""

from __future__ import annotations

import torch
from torch import nn

from tokred import LayerView, SoftMap
from tokred.methods.base import Method
from tokred.methods.patchmerger import PatchMerger, PatchMergerPart
from tokred.methods.sinkhorn import Sinkhorn, SinkhornPart
from tokred.methods.sit import SiT, SiTPart

from ..case import Case, checks
from ..compare import near


@checks("patchmerger", lambda case: case.has("x", "attn", "y"))
def check_patchmerger(case: Case) -> None:
    """The attention of the queries, and the sums of normalised patches."""
    scaled = case.hyper["scaled_attention"]
    part = PatchMergerPart(case.hyper["clusters"], case["x"].shape[2], scaled)
    _check(case, PatchMerger(scaled=scaled), part, "attn")


@checks("sit", lambda case: case.has("x", "weight", "y"))
def check_sit(case: Case) -> None:
    """The weights of the network, and the sums."""
    ratio = case.hyper["hidden_ratio"]
    _check(case, SiT(hidden_ratio=ratio), SiTPart(case.hyper["clusters"], case["x"].shape[2], ratio), "weight")


@checks("sinkhorn", lambda case: case.has("x", "plan", "y"))
def check_sinkhorn(case: Case) -> None:
    """The transport plan, and the sums of patches of length one."""
    method = Sinkhorn(iterations=case.hyper["iterations"], eps=case.hyper["eps"])
    _check(case, method, SinkhornPart(case.hyper["clusters"], case["x"].shape[2]), "plan")


@torch.no_grad()
def _check(case: Case, method: Method, part: nn.Module, mixing: str) -> None:
    part.load_state_dict(case.state_dict())
    token_map = method.reduce(LayerView(case["x"], stay={"merge": case.hyper["clusters"]}, module=part))
    assert isinstance(token_map, SoftMap)
    near(token_map.mixing, case[mixing], mixing)
    near(token_map.apply(case["x"]), case["y"], "y")
