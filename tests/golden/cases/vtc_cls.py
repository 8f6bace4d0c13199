"""VTC-CLS: class attention summed over a slice of layers."""

from __future__ import annotations

import torch

from tokred.layout import VisualLayout
from tokred.methods.vtc_cls import VTCCLS

from ..case import Case, checks
from ..compare import close, same
from ..features import class_rows, view


@checks("vtc_cls", lambda case: case.has("cls_attention", "score", "kept_indices"))
def check_vtc_cls(case: Case) -> None:
    """The layers, the score and the kept patches; the last layer but one made the features."""
    hyper, rows = case.hyper, case["cls_attention"]
    depth = hyper["num_layers"]
    method = VTCCLS(keep=int(hyper["keep"]), start=hyper["start_layer"])
    if "layers_used" in hyper:
        assert list(method.layers(depth, depth - 2)) == hyper["layers_used"]
    layers = [class_rows(row) for row in rows]
    images = [
        view(VisualLayout.plain(tuple(hyper["grid"])), layers.__getitem__, image=n, depth=depth, produced_by=depth - 2)
        for n in range(rows.shape[1])
    ]
    close(torch.cat([method.score(v) for v in images]), case["score"], "score")
    same(torch.cat([method.reduce(v).kept for v in images]), case["kept_indices"], "kept_indices")
