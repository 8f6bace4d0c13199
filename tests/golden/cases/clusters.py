"""K-medoids and DPC-KNN: clusters of patches."""

from __future__ import annotations

import torch

from tokred import LayerView
from tokred.methods.dpcknn import DPCKNN, DPCKNNPart, log_density
from tokred.methods.kmedoids import KMedoids, medoids
from tokred.ops import distances, rank_descending

from ..case import Case, checks
from ..compare import near, same


@checks("kmedoids", lambda case: case.has("x", "weight", "centers", "assign", "merged"))
def check_medoids(case: Case) -> None:
    """The medoids and their clusters, and what the method makes of an attention with these column sums."""
    x, weight, hyper = case["x"], case["weight"].squeeze(2), case.hyper
    start = rank_descending(weight)[:, : hyper["clusters"]]
    centers, assign = medoids(distances(x), weight, start, hyper["iterations"], "released")
    same(centers, case["centers"], "centers")
    same(assign, case["assign"], "assign")
    rows = (weight / weight.sum(dim=1, keepdim=True))[:, None, None].expand(-1, 1, x.shape[1], -1)
    keys = torch.eye(x.shape[1]).expand_as(rows)
    view = LayerView(x, stay={"merge": hyper["clusters"]}, scale=1.0, signals={"q": rows.log(), "k": keys})
    token_map = KMedoids(iterations=hyper["iterations"], variant="released").reduce(view)
    same(token_map.kept, case["centers"], "anchors")
    same(token_map.slot, case["assign"], "slots")
    near(token_map.apply(x), case["merged"], "merged")


@checks("dpcknn", lambda case: case.has("x", "density", "centers", "assign", "merged"))
@torch.no_grad()
def check_density_peaks(case: Case) -> None:
    """Densities, centers in their order, clusters and their weighted means."""
    x, hyper = case["x"], case.hyper
    part = DPCKNNPart(x.shape[2])
    if case.state_dict():
        part.load_state_dict(case.state_dict())
    near(log_density(x, hyper["k"]).exp(), case["density"], "density")
    near(part(x), case["token_weight"].squeeze(2), "token_weight")
    method = DPCKNN(neighbours=hyper["k"], weighting="equal" if hyper["equal_weight"] else "learned")
    token_map = method.reduce(LayerView(x, stay={"merge": hyper["clusters"]}, module=part))
    same(token_map.kept, case["centers"], "centers")
    same(token_map.slot, case["assign"], "assign")
    near(token_map.apply(x), case["merged"], "merged")
