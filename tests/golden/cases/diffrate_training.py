"""DiffRate in training: expected counts and masks, masked attention, a model with the gradients of its rates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

import tokred
from tokred.adapters.site import key_bias
from tokred.learn.diffrate import MaskedDiffRate, Rates, formula_macs, survive
from tokred.state import TokenState

from ..case import Case, checks
from ..compare import LOGITS, formula_shape, near, same, shape_of

TRACKS = ("prune", "merge")


@checks("diffrate", lambda case: case.has("candidates", "token_probability"))
def check_proxy(case: Case) -> None:
    """Candidates, expected counts, chances and masks of one decision, and their gradients."""
    hyper, whole = case.hyper, case.hyper["patch_number"] + 1
    rates = Rates(shape_of(whole, 1, depth=2), hyper["granularity"])
    same(rates.candidates, case["candidates"], "candidates")
    rates.logits.data[:] = case["logits"]
    kept, chance = rates.kept()[0, 0], rates.chance(1)[0]
    gone = torch.arange(whole) >= (hyper["token_number"] or whole)
    mask = survive(chance, int(kept), gone)
    same(kept.long().view(1), case["kept"], "kept")
    near(chance, case["token_probability"], "token_probability")
    near(mask, case["mask"], "mask")
    near(_gradient(kept, rates)[0, 0], case["grad_kept"], "grad_kept")
    near(_gradient((mask * case["w"]).sum(), rates)[0, 0], case["grad_mask"], "grad_mask")


@checks("diffrate", lambda case: case.has("attn", "attn_logits", "mask"))
def check_masked_attention(case: Case) -> None:
    """The masked softmax, as an attention gets it with its mask."""
    logits, mask = case["attn_logits"], case["mask"]
    bias = key_bias(TokenState(mask.shape[1], soft=mask), True, logits.dtype)
    near((logits + bias).softmax(dim=-1), case["attn"], "attn of the eager path")
    values = torch.eye(logits.shape[-1]).expand_as(logits)
    fused = F.scaled_dot_product_attention(logits, values, values, attn_mask=bias, scale=1.0)
    near(fused, case["attn"], "attn of the fused path")


@checks("diffrate", lambda case: case.has("image", "ce", "flops"))
def check_training(case: Case) -> None:
    """A training step of a whole model: logits, cost, and all gradients of the rates."""
    model, shape = case.model().requires_grad_(False), formula_shape(case)
    rates = Rates(shape, case.hyper["granularity"])
    for layer in range(1, shape.depth):
        for row, track in enumerate(TRACKS):
            rates.logits.data[layer - 1, row] = case[f"logits.{layer}.{track}"]
    tracks = rates.schedule().tracks
    assert [list(tracks[track]) for track in TRACKS] == [case.hyper["prune_kept"], case.hyper["merge_kept"]]
    with tokred.patch(model, MaskedDiffRate(rates=rates)):
        logits = model(case["image"])
    cross_entropy, macs = F.cross_entropy(logits, case["target"]), formula_macs(shape, rates.kept())
    near(logits, case["logits"], "logits", LOGITS)
    near(cross_entropy.view(1), case["ce"], "ce", LOGITS)
    same(macs.view(1), case["flops"], "flops")
    for what, value, absolute in (("ce", cross_entropy, 1e-5), ("flops", macs, 0.1)):
        gradient = _gradient(value, rates)
        for layer in range(1, shape.depth):
            for row, track in enumerate(TRACKS):
                name = f"grad_{what}.{layer}.{track}"
                near(gradient[layer - 1, row], case[name], name, absolute)


def _gradient(value: Tensor, rates: Rates) -> Tensor:
    (gradient,) = torch.autograd.grad(value, rates.logits, retain_graph=True)
    return gradient
