"""ATS: the sampled patches."""

from __future__ import annotations

import torch

from tokred import LayerView
from tokred.methods.ats import ATS

from ..case import Case, checks
from ..compare import attention_signals, near, same


@checks("ats", lambda case: case.has("attn", "value", "sampled", "mask_out"))
def check_sampling(case: Case) -> None:
    """Which patches are sampled, what pads the batch, and their rows of the attention."""
    attn = case["attn"]
    mask = case.get("mask")
    view = LayerView(
        torch.zeros(attn.shape[0], attn.shape[2], 1),
        stay={"prune": 1 + case.hyper["sample_count"]},
        num_prefix=1,
        scale=1.0,
        valid=None if mask is None else mask.bool(),
        signals={**attention_signals(attn), "v": case["value"]},
    )
    token_map = ATS(variant="released").reduce(view)
    valid = token_map.valid if token_map.valid is not None else torch.ones_like(token_map.kept, dtype=torch.bool)
    same(token_map.kept.masked_fill(~valid, 0), case["sampled"], "sampled")
    same(valid.long(), case["mask_out"], "mask_out")
    if case.has("attn_out"):
        near(token_map.gather(attn, dim=2), case["attn_out"], "attn_out")
