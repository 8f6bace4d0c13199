"""ATP-LLaVA: scores, thresholds, masks, what is kept, and the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from tokred import ops
from tokred.decoder_view import DecoderView
from tokred.methods.atp import ATP, ATPModule, atp_loss, hard_mask, soft_mask

from ..case import Case, checks
from ..compare import close, same


@checks("atp", lambda case: case.has("attn_logits", "w_z", "hard_mask", "kept_indices"))
@torch.no_grad()
def check_module(case: Case) -> None:
    """One module on a square image followed by text."""
    logits, hyper = case["attn_logits"], case.hyper
    batch, _, tokens, _ = logits.shape
    number = hyper["grid"] ** 2
    assert tokens == number + hyper["n_text"]
    module = ATPModule(case["w_z"].shape[0])
    layers = {"hidden": "z", "redundant": "r", "spatial": "s"}
    names = {f"{layer}.{kind}": f"{kind[0]}_{name}" for layer, name in layers.items() for kind in ("weight", "bias")}
    module.load_state_dict({ours: case[theirs] for ours, theirs in names.items()})
    keys = torch.eye(tokens).expand_as(logits)
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    close(ops.attention_matrix(logits, keys, 1.0, causal), case["attn_weights"], "attn_weights")
    view = DecoderView(
        torch.zeros(batch, tokens, 1),
        layer=1,
        depth=2,
        visual=(torch.arange(tokens) < number).expand(batch, -1),
        q=logits,
        k=keys,
        scale=1.0,
        module=module,
    )
    method = ATP(
        layers=(1,),
        sampling_rates=tuple(hyper["sampling_rates"]),
        lambda_sample=hyper["lambda_sample"],
        temperature=hyper["temperature"],
    )
    scores = method.scores(view)
    close(scores.self_[:, :number], case["score_self"], "score_self")
    close(scores.cross[:, :number], case["score_cross"], "score_cross")
    close(scores.redundant[:, :number], case["score_redundant"], "score_redundant")
    close(scores.spatial[:, :number], case["score_spatial"].expand(batch, -1), "score_spatial")
    close(scores.theta_r, case["theta_r"], "theta_r")
    close(scores.theta_s, case["theta_s"], "theta_s")
    decision = scores.redundant, scores.spatial, scores.theta_r, scores.theta_s
    close(soft_mask(*decision, method.temperature)[:, :number], case["soft_mask"], "soft_mask")
    close(method.soften(view)[:, :number], case["soft_mask"], "soft_mask")
    same(hard_mask(*decision)[:, :number].long(), case["hard_mask"], "hard_mask")
    token_map = method.reduce(view)
    kept = [row[row < number] for row in _real(token_map.kept, token_map.valid)]
    width = case["kept_indices"].shape[1]
    same(_padded(kept, width), case["kept_indices"], "kept_indices")
    positions = [view.position[prompt, row] for prompt, row in enumerate(kept)]
    same(_padded(positions, width), case["kept_position_ids"], "kept_position_ids")


@checks("atp", lambda case: case.has("soft_masks", "loss_total"))
def check_loss(case: Case) -> None:
    """The terms beside the language loss."""
    hyper = case.hyper
    weights = {name: hyper[name] for name in ("lambda_atp", "lambda_target")}
    loss = atp_loss(case["soft_masks"], hyper["layers"], hyper["n_initial"], hyper["target"], **weights)
    close(loss.depth.view(1), case["loss_atp"], "loss_atp")
    close(loss.target.view(1), case["loss_target"], "loss_target")
    close(loss.total.view(1), case["loss_total"], "loss_total")


def _real(kept: Tensor, valid: Tensor | None) -> list[Tensor]:
    return list(kept) if valid is None else [row[real] for row, real in zip(kept, valid, strict=True)]


def _padded(rows: list[Tensor], width: int) -> Tensor:
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row)), value=-1) for row in rows])
