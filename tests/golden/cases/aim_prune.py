"""AIM, pruning in the language model: page rank, and which tokens are left after every layer."""

from __future__ import annotations

import torch

from tokred.decoder_view import DecoderView
from tokred.methods.aim_prune import AIMPrune, importance, keep_counts

from ..case import Case, checks
from ..compare import close, same


@checks("aim", lambda case: case.has("attn_logits", "importance") and not case.hyper.get("damping"))
def check_importance(case: Case) -> None:
    """The votes after some rounds, from logits that hold the causal mask."""
    logits, hyper = case["attn_logits"], case.hyper
    batch, _, tokens, _ = logits.shape
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    same(logits > -1e30, causal.expand_as(logits), "causal mask")
    view = DecoderView(
        torch.zeros(batch, tokens, 1),
        layer=1,
        depth=2,
        visual=torch.zeros(batch, tokens, dtype=torch.bool),
        q=logits.masked_fill(~causal, 0),
        k=torch.eye(tokens).expand_as(logits),
        scale=1.0,
    )
    close(importance(view, hyper["tau"], hyper["iterations"]), case["importance"], "importance", 1e-3)


@checks("aim", lambda case: case.has("importance", "keep_mask_after_layer") and "visual_span" in case.hyper)
def check_progressive(case: Case) -> None:
    """What the layers leave, one after the other, by given importances."""
    score, hyper = case["importance"], case.hyper
    depth, tokens = score.shape
    assert depth == hyper["num_layers"]
    method = AIMPrune(first_layer=hyper["first_prune_layer"], step=hyper["step"])
    visual = torch.zeros(tokens, dtype=torch.bool)
    visual[slice(*hyper["visual_span"])] = True
    number = visual.sum().view(1)
    position, masks = torch.arange(tokens), []
    for layer in range(depth):
        rate = method.rate(layer + 1, depth)
        assert abs(rate - hyper["retain_rate"][layer]) < 1e-9
        view = DecoderView(
            torch.zeros(1, len(position), 1),
            layer=layer + 1,
            depth=depth,
            visual=visual[position].unsqueeze(0),
            position=position.unsqueeze(0),
            num_visual=number,
        )
        count = keep_counts(view.num_visual, view.text.sum(dim=1), rate)
        token_map = view.select(view.top(score[layer, position].unsqueeze(0), count, least=0))
        if layer + 1 < depth and layer + 1 not in method.stages(depth):
            assert token_map.num_slots == len(position)
        position = position[token_map.kept[0]]
        masks.append(torch.zeros(tokens, dtype=torch.int64).scatter(0, position, 1))
    found = torch.stack(masks)
    same(found, case["keep_mask_after_layer"], "keep_mask_after_layer")
    same((found * visual).sum(dim=1), case["kept_visual_per_layer"], "kept_visual_per_layer")
