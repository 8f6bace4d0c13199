"""Transformer blocks of a FlexTok with given weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import silu

from tokred.tokenizers.flextok.blocks import Block, ModulatedBlock, norm
from tokred.tokenizers.flextok.cross import CrossBlock
from tokred.tokenizers.flextok.decoder import Head
from tokred.tokenizers.flextok.layout import block_names

from ..case import Case, checks
from ..compare import near

IS_BLOCKS = "adaLN_expansion"


def load(module: nn.Module, case: Case, prefix: str) -> nn.Module:
    """Give a module the weights under their published names."""
    there = case.below(f"{prefix}/param/")
    weights = {}
    for name in module.state_dict():
        parts = [there.pop(part) for part in block_names(name) if part in there]
        weights[name] = torch.cat(parts)
    module.load_state_dict(weights)
    assert not there, f"weights without a place: {sorted(there)}"
    return module.eval()


@checks("", lambda case: IS_BLOCKS in case.hyper and case.has("x", "mask", "temb"))
@torch.no_grad()
def check_blocks(case: Case) -> None:
    """The plain and the vanilla block on the packed row; the modulated ones on a batch, groups apart."""
    hyper = case.hyper
    dim, width, hidden = hyper["dim"], hyper["head_dim"], hyper["gated_hidden"]
    sizes, groups = (hyper["n_patches"], hyper["n_registers"]), hyper["adaLN_expansion"]
    x, mask, tokens = case["x"], case["mask"].bool(), sum(sizes)
    assert hyper["ln_eps"] == 1e-5
    assert hyper["attn_scale"] == "8/head_dim"
    plain = load(Block(dim, width, hidden), case, "plain")
    near(plain.attn(norm(x), mask), case["plain/attn_out"], "plain/attn_out")
    near(plain.mlp(norm(x)), case["plain/mlp_out"], "plain/mlp_out")
    near(plain(x, mask), case["plain/out"], "plain/out")
    vanilla = load(Block(dim, width, gated=False, bias=True, qk_norm=False, scale=width**-0.5), case, "vanilla")
    near(vanilla(x, mask), case["vanilla/out"], "vanilla/out")
    batch = x.view(-1, tokens, dim)
    masks = torch.stack([mask[i : i + tokens, i : i + tokens] for i in range(0, len(mask), tokens)])[:, None]
    time = silu(case["temb"])
    modulated = load(ModulatedBlock(dim, width, hidden, groups), case, "adaln")
    near(modulated.modulation(time), case["adaln/modulation"], "adaln/modulation")
    near(modulated(batch, time, sizes, masks).view_as(x), case["adaln/out"], "adaln/out")
    cross = load(CrossBlock(dim, width, hidden, groups), case, "xattn")
    context = case["xattn/context"].view_as(batch)
    near(cross(batch, context, time, sizes, masks).view_as(x), case["xattn/out"], "xattn/out")


@checks("", lambda case: case.has("head/in", "head/out", "temb"))
@torch.no_grad()
def check_head(case: Case) -> None:
    """From patch tokens to a picture."""
    tokens, wanted = case["head/in"], case["head/out"]
    patch = wanted.shape[1] // tokens.shape[1]
    head = load(Head(tokens.shape[-1], patch, wanted.shape[-1]), case, "head")
    found = head(tokens.flatten(1, 2), silu(case["temb"]), *tokens.shape[1:3])
    near(found.permute(0, 2, 3, 1), wanted, "head/out")
