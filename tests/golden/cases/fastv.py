"""FastV: which tokens the last row of an attention keeps; and that row itself, from rotated queries and keys."""

from __future__ import annotations

import torch

from tokred.decoder_view import DecoderView
from tokred.methods.fastv import FastV

from ..case import Case, checks
from ..compare import close, same


@checks("fastv", lambda case: case.has("last_row_attention", "kept_positions"))
def check_fastv(case: Case) -> None:
    """The score, and the positions that go on."""
    row, hyper = case["last_row_attention"], case.hyper
    tokens = row.shape[2]
    visual = torch.zeros(1, tokens, dtype=torch.bool)
    visual[:, hyper["image_start"] : hyper["image_start"] + hyper["image_len"]] = True
    q = torch.zeros(*row.shape, tokens)
    q[:, :, -1] = row.clamp(min=torch.finfo(row.dtype).tiny).log()
    view = DecoderView(
        torch.zeros(1, tokens, 1),
        layer=2,
        depth=3,
        visual=visual,
        q=q,
        k=torch.eye(tokens).expand_as(q),
        scale=1.0,
    )
    method = FastV(keep=1 - hyper["ratio_removed"])
    close(method.score(view)[0], case["score"], "score")
    kept = method.reduce(view).kept
    assert int(visual[0, kept[0]].sum()) == hyper["keep"]
    same(view.position.gather(1, kept)[0], case["kept_positions"], "kept_positions")


@checks("attention_row", lambda case: case.has("q", "k", "attention"))
def check_last_row(case: Case) -> None:
    """The last row of a language model's attention, keys shared by groups of heads."""
    q, k = case["q"], case["k"]
    tokens = k.shape[2]
    assert (q.shape[1], k.shape[1]) == (case.hyper["heads"], case.hyper["kv_heads"])
    assert case.hyper["scale"] == "head_dim**-0.5"
    view = DecoderView(
        torch.zeros(1, tokens, 1),
        layer=1,
        depth=2,
        visual=torch.zeros(1, tokens, dtype=torch.bool),
        q=torch.cat([torch.zeros_like(q).expand(-1, -1, tokens - 1, -1), q], dim=2),
        k=k,
    )
    row = view.last_row()
    close(row, case["attention"], "attention")
    close(row.mean(dim=1), case["mean_heads"], "mean_heads")
    close(row.sum(dim=1), case["sum_heads"], "sum_heads")
