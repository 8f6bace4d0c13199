"""HiRED: the budget of every partition, what is kept, and how it is packed."""

from __future__ import annotations

import torch

from tokred.layout import VisualLayout
from tokred.methods.features import top_patches
from tokred.methods.hired import HiRED

from ..case import Case, checks
from ..compare import close, same
from ..features import class_rows, tiled, view


@checks("hired", lambda case: case.has("cls_attention_init", "cls_attention_final", "kept_mask"))
def check_tiles(case: Case) -> None:
    """An image with tiles, and letterbox padding in them."""
    hyper = case.hyper
    layout, box = tiled(hyper["side"], hyper["grid_rows_cols"], hyper["image_size_hw"])
    layers = {0: class_rows(case["cls_attention_init"]), 2: class_rows(case["cls_attention_final"])}
    image = view(layout, layers.__getitem__, depth=4, produced_by=2)
    method = HiRED(
        keep=float(hyper["token_budget_rate"]),
        alpha=hyper["alpha"],
        allocation={"code": "released", "paper": "paper"}[hyper["allocation"]],
    )
    wanted = tuple(hyper[name] for name in ("total_budget", "full_budget", "sub_budget"))
    assert method.split(layout) == wanted, f"budgets: {method.split(layout)} instead of {wanted}"
    score = image.saliency(0, heads="sum")[0]
    content = method.content(score, layout)
    close(content, case["content_scores"], "content_scores")
    budgets = method.budgets(score, layout)
    same(budgets, case["budgets"], "budgets")
    chosen = top_patches(image.saliency(heads="sum"), budgets)
    same(chosen.long(), case["kept_mask"], "kept_mask")
    same(chosen.sum(dim=1), case["kept_counts_before_unpad"], "kept_counts_before_unpad")
    same(torch.tensor(box), case["unpad_box"], "unpad_box")
    patch = layout.patch[method.reduce(image).kept[0]]
    packed = torch.stack([patch // layout.num_patches, patch % layout.num_patches], dim=1)
    same(packed, case["packed_partition_token"], "packed_partition_token")


@checks("hired", lambda case: case.has("cls_attention_final", "importance", "kept_indices"))
def check_one_partition(case: Case) -> None:
    """An image without tiles."""
    attention = class_rows(case["cls_attention_final"])
    image = view(VisualLayout.plain(tuple(case.hyper["grid"])), attention, depth=4, produced_by=2)
    close(image.saliency(heads="sum"), case["importance"], "importance")
    method = HiRED(keep=float(case.hyper["token_budget_rate"]))
    same(method.reduce(image).kept[0], case["kept_indices"], "kept_indices")
