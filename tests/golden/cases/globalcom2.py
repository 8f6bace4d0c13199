"""GlobalCom2: the shares of the tiles, their scores, what stays, and the sequence of the released code."""

from __future__ import annotations

import torch

from tokred.methods.globalcom2 import GlobalCom2, scores, tile_counts, tile_ratios, tile_scores

from ..case import Case, checks
from ..compare import close, same
from ..features import class_logits, padded, tiled, view


@checks("globalcom2", lambda case: case.has("cls_logits", "crop_ratios", "combined_scores"))
def check_globalcom2(case: Case) -> None:
    """All steps from the products of the class query to both sequences."""
    hyper = case.hyper
    layout, _ = tiled(hyper["side"], hyper["grid_wh"][::-1], hyper["image_size_wh"][::-1])
    assert layout.mosaic is not None
    method = GlobalCom2(keep=float(hyper["retention_ratio"]), temperature=hyper["temperature"])
    image = view(layout, class_logits(case["cls_logits"]), depth=4, produced_by=2)
    logits, shown = scores(image), layout.shown[1:]
    close(logits, case["cls_logits"], "cls_logits")
    sums, ratios = tile_ratios(logits[0], layout.grid, layout.mosaic, method.share(layout), method.temperature)
    close(sums, case["crop_score_sums"], "crop_score_sums", relative=1e-5, absolute=1e-5)
    close(ratios, case["crop_ratios"], "crop_ratios")
    same(shown.sum(dim=1), case["crop_valid_tokens"], "crop_valid_tokens")
    same(tile_counts(ratios, layout), case["crop_kept_counts"], "crop_kept_counts")
    combined = [row[real] for row, real in zip(tile_scores(logits, layout), shown, strict=True)]
    close(padded(combined, case["combined_scores"].shape[1], 0), case["combined_scores"], "combined_scores")

    released = layout.patch[method.with_(variant="released").reduce(image).kept[0]]
    patches, thumbnail = layout.num_patches, case["thumbnail_kept_indices"]
    place = shown.long().cumsum(dim=1) - 1  # among the patches that are no padding
    kept = [
        place[tile - 1, released[released // patches == tile] % patches].sort().values
        for tile in range(1, layout.num_partitions)
    ]
    wanted = case["crop_kept_valid_indices"]
    same(padded(kept, wanted.shape[1]), wanted, "crop_kept_valid_indices")

    patch = layout.patch[method.reduce(image).kept[0]]
    if not method.keeps_all(layout):
        same(patch[: len(thumbnail)], thumbnail.sort().values, "thumbnail_kept_indices, by position")
        same(patch[patch >= 0].sort().values, released[released >= 0].sort().values, "both variants")

    same(released[: len(thumbnail)], thumbnail, "thumbnail_kept_indices")
    released = released[len(thumbnail) :].unsqueeze(1)
    sequence = torch.where(released < 0, -1, torch.cat([released // patches, released % patches], dim=1))
    same(sequence, case["crop_sequence_released"], "crop_sequence_released")
