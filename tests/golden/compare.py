"""Comparisons that all methods share. Tolerances: see the README of the vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tokred
from tokred.methods.base import Method
from tokred.shape import BlockShape
from tokred.state import TokenState, carry, state_of

from .case import Case

VALUES = 2e-5
LOGITS = 5e-4


def same(found: Tensor, wanted: Tensor, what: str) -> None:
    """Integers, and zeros and ones, exactly."""
    assert found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)}, the vector has {tuple(wanted.shape)}"
    wrong = (found != wanted).nonzero()
    assert not len(wrong), (
        f"{what}: {len(wrong)} of {wanted.numel()} entries differ, the first at {wrong[0].tolist()}: "
        f"{found[tuple(wrong[0])].item()} instead of {wanted[tuple(wrong[0])].item()}"
    )


def near(found: Tensor, wanted: Tensor, what: str, tolerance: float = VALUES) -> None:
    """Values within an absolute tolerance."""
    assert found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)}, the vector has {tuple(wanted.shape)}"
    error = float((found.detach().double() - wanted.double()).abs().max()) if wanted.numel() else 0.0
    assert error <= tolerance, f"{what}: largest error {error:.2e}, allowed {tolerance:.0e}"


def close(found: Tensor, wanted: Tensor, what: str, relative: float = 1e-4, absolute: float = 1e-6) -> None:
    """Values within a relative tolerance, and an absolute one for those near zero."""
    assert found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)}, the vector has {tuple(wanted.shape)}"
    error = (found.double() - wanted.double()).abs()
    wrong = (~(error <= absolute + relative * wanted.double().abs())).nonzero()
    assert not len(wrong), (
        f"{what}: {len(wrong)} of {wanted.numel()} values differ, the first at {wrong[0].tolist()}: "
        f"{found[tuple(wrong[0])].item()} instead of {wanted[tuple(wrong[0])].item()}"
    )


def shape_of(num_tokens: int, num_prefix: int, depth: int = 1) -> tokred.ModelShape:
    """A shape for schedules: only the numbers of tokens and blocks matter."""
    return tokred.ModelShape((BlockShape(1, 1, 1),) * depth, num_tokens, num_prefix)


def reduce_as_a_block_does(method: Method, view: tokred.LayerView) -> tokred.TokenMap:
    """The map of a method; blocks do not call it when all tokens stay."""
    if min(view.stay.values()) >= view.num_tokens:
        return tokred.TokenMap.identity(view.batch, view.num_tokens)
    return method.reduce(view)


def compare_map(case: Case, token_map: tokred.TokenMap) -> None:
    """The map of an operator case: source, assignment, sizes and merged tokens, in the order of the reference."""
    x, size = case["x"], case.sizes("size_in")
    source = token_map.to_source_matrix()
    if case.has("source"):
        same(source, case["source"], "source")
    if case.has("assign"):
        same(token_map.slot, case["assign"], "assign")
    if case.has("size_out"):
        near(token_map.apply_size(size), case.sizes("size_out"), "size_out")
    merged = token_map.apply(x, size)
    near(merged, case["x_merged"], "x_merged")
    if case.has("x_unmerged"):
        wanted = case["x_unmerged"]
        near(token_map.unmerge(merged)[:, : wanted.shape[1]], wanted, "x_unmerged")


def row_order(source: Tensor) -> Tensor:
    """[B, N] the rows of a source matrix [B, N, N0] by the first original token that they hold."""
    assert (source.sum(dim=1) <= 1).all(), "a token has more than one row"
    assert (source.sum(dim=2) >= 1).all(), "a row holds no token"
    return source.argmax(dim=2).argsort(dim=1)


def rows(x: Tensor, order: Tensor) -> Tensor:
    """Rows ``order`` [B, N] of ``x`` [B, N, ...]."""
    return torch.stack([image[index] for image, index in zip(x, order, strict=True)])


@torch.no_grad()
def compare_model(case: Case, method: Method) -> tokred.Handle:
    """A model case through ``tokred.patch``: counts, logits, source, sizes, the last block; returns the handle."""
    model = case.model()
    plain = model(case["image"])
    if case.has("logits_unpatched"):
        near(plain, case["logits_unpatched"], "logits of the plain model", LOGITS)
    last: list[Tensor] = []
    with tokred.patch(model, method, trace=True) as handle:
        hook = model.blocks[-1].register_forward_hook(lambda _module, _inputs, output: last.append(output))
        logits = model(case["image"])
        hook.remove()
        trace = handle.trace
    assert trace.tokens_per_layer == case["tokens_per_layer"].tolist()
    if case.has("source"):
        found, wanted = trace.source_matrix(), case["source"]
        assert found.shape == wanted.shape
        order, wanted_order = row_order(found), row_order(wanted)
        same(rows(found, order), rows(wanted, wanted_order), "source")
        if case.has("size"):
            near(rows(trace.sizes(), order), rows(case.sizes("size"), wanted_order), "size", LOGITS)
        if case.has("last_block"):
            near(rows(last[-1], order), rows(case["last_block"], wanted_order), "last_block", 2 * LOGITS)
    if case.has("kept"):
        same(trace.state.position.sort(dim=1).values, case["kept"].sort(dim=1).values, "kept")
    near(logits, case["logits"], "logits", LOGITS)
    same(model(case["image"]), plain, "logits after the patch was removed")
    return handle


def formula_shape(case: Case) -> tokred.ModelShape:
    """The shape of a model case as the papers' FLOP formulas see it: they take the MLP for four times as wide."""
    model = case.model()
    return tokred.ModelShape.vit(
        depth=len(model.blocks),
        dim=model.embed_dim,
        heads=model.blocks[0].attn.num_heads,
        patches=model.patch_embed.num_patches,
        patch_size=model.patch_embed.patch_size[0],
        num_prefix=model.num_prefix_tokens,
        num_classes=model.num_classes,
    )


@torch.no_grad()
def run_block(case: Case, method: Method, num_prefix: int = 1) -> tuple[Tensor, TokenState, tokred.LayerView]:
    """A block case through ``tokred.patch``: the block stands in a model of one block, whose input is the case's ``x``.

    Returns:
        What left the block, its state, and the view that the method got.
    """
    x, hyper = case["x"], case.hyper
    model = _one_block(case.state_dict(), hyper, x.shape[1] - num_prefix, x.shape[2], num_prefix)
    method, seen = _spied(method)
    with tokred.patch(model, method) as handle:
        seen.clear()
        y = handle.tower.blocks[0](carry(x.clone(), TokenState(x.shape[1], sizes=case.sizes("size_in"))))
    return y, state_of(y), seen[-1]


def _one_block(
    weights: Mapping[str, Tensor], hyper: Mapping[str, Any], patches: int, dim: int, prefix: int
) -> nn.Module:
    model = VisionTransformer(
        img_size=(4 * patches, 4),
        patch_size=4,
        depth=1,
        embed_dim=dim,
        num_heads=hyper["num_heads"],
        mlp_ratio=hyper.get("mlp_ratio", 4.0),
        qkv_bias="attn.qkv.bias" in weights,
        norm_layer=partial(nn.LayerNorm, eps=hyper.get("norm_eps", 1e-6)),
        num_classes=2,
        class_token=prefix > 0,
        global_pool="token" if prefix else "avg",
    )
    model.blocks[0].load_state_dict(weights)
    return model.eval()


def _spied(method: Method) -> tuple[Method, list[tokred.LayerView]]:
    """The method, and a list that collects every view it gets."""
    seen: list[tokred.LayerView] = []

    class Spied(type(method)):
        def reduce(self, view: tokred.LayerView) -> tokred.TokenMap:
            seen.append(view)
            return super().reduce(view)

    return Spied(**{f.name: getattr(method, f.name) for f in fields(method)}), seen


def attention_signals(attention: Tensor) -> dict[str, Tensor]:
    """Queries and keys whose attention, at scale 1, is a given matrix [B, H, N, N]."""
    keys = torch.eye(attention.shape[-1]).expand_as(attention)
    return {"q": attention.clamp(min=torch.finfo(attention.dtype).tiny).log(), "k": keys}
