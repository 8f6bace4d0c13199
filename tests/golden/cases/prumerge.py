"""LLaVA-PruMerge: class attention, its outliers, what stays."""

from __future__ import annotations

import torch

from tokred.feature_view import EncoderAttention
from tokred.layout import VisualLayout
from tokred.methods.prumerge import PruMerge, class_attention, outliers

from ..case import Case, checks
from ..compare import close, same
from ..features import view


@checks("prumerge", lambda case: case.has("q_cls", "k", "cls_attention", "kept_order"))
def check_selection(case: Case) -> None:
    """From query and keys to the order of the kept patches, without and with the grid."""
    keys = case["k"].unsqueeze(1)
    patches = keys.shape[2] - 1
    attention = EncoderAttention(case["q_cls"].view(1, 1, 1, -1), keys, keys.shape[3] ** -0.5, 1, True)
    image = view(VisualLayout.plain((1, patches)), attention, torch.ones(patches, 1))
    score = class_attention(image)
    close(score[0], case["cls_attention"], "cls_attention")
    method = PruMerge(iqr=case.hyper["iqr_factor"])
    found = outliers(score, method.iqr)
    same(found.view(1), case["outlier_count"], "outlier_count")
    for name, variant in (("kept_order", method), ("kept_order_plus", method.with_(plus=True))):
        order, counts = variant.choose(score, max(1, int(patches * (int(found) / patches))))
        same(order[0, : int(counts)], case[name], name)
        dropped = int(counts) < patches
        same(variant.reduce(image).kept[0, : int(counts)], case[name], name)
        assert variant.reduce(image).num_slots == int(counts) + dropped
