"""PiToMe: energy, its merging modes, counts and margins, models."""

from __future__ import annotations

import math

import torch

from tokred import LayerView, ModelShape, ops
from tokred.cost import cost
from tokred.methods.pitome import PiToMe, margins
from tokred.methods.tome import bipartite_soft_matching

from ..case import Case, checks, is_model_case
from ..compare import close, compare_map, compare_model, formula_shape, near, reduce_as_a_block_does, same, shape_of

MODES = {"pitome": "protect", "bsm": "order", "text": "text"}


@checks("pitome", lambda case: case.has("metric", "x", "x_merged") and case.hyper.get("mode") in MODES)
def check_merging(case: Case) -> None:
    """One merge at the margin of the case, which a model of one block has in its only block."""
    metric, hyper = case["metric"], case.hyper
    method = PiToMe(
        keep=float(hyper["ratio"]), margin=hyper["margin"], alpha=hyper.get("alpha", 1.0), modes=MODES[hyper["mode"]]
    )
    stay = method.plan(shape_of(metric.shape[1], case.prefix)).stay(0)
    if "r" in hyper:
        assert stay["merge"] == metric.shape[1] - hyper["r"]
    view = LayerView(case["x"], stay=stay, num_prefix=case.prefix, signals={"keys": metric})
    compare_map(case, reduce_as_a_block_does(method, view))


@checks("pitome", lambda case: case.has("metric", "energy"))
def check_energy(case: Case) -> None:
    """The energy of every patch, and the order that it gives."""
    patches, hyper = case["metric"][:, case.prefix :], case.hyper
    if hyper.get("mode") == "text":
        energy = ops.gaussian_energy(patches, hyper["margin"])
    else:
        energy = ops.energy(patches, hyper["margin"], hyper.get("alpha", hyper.get("elu_alpha", 1.0)))
    near(energy, case["energy"], "energy")
    if case.has("order"):
        same(ops.rank_descending(energy), case["order"], "order")


@checks("pitome", lambda case: case.has("metric", "x", "merged") and "mode" not in case.hyper)
def check_merged(case: Case) -> None:
    """One protected merge of the tokens of an image encoder."""
    metric, hyper = case["metric"], case.hyper
    method = PiToMe(keep=float(hyper["ratio"]), margin=hyper["margin"], alpha=hyper.get("elu_alpha", 1.0))
    stay = method.plan(shape_of(metric.shape[1], case.prefix)).stay(0)
    assert stay["merge"] == metric.shape[1] - hyper["r"]
    view = LayerView(case["x"], stay=stay, num_prefix=case.prefix, signals={"keys": metric})
    close(reduce_as_a_block_does(method, view).apply(case["x"]), case["merged"], "merged")


@checks("pitome", lambda case: case.has("metric", "x", "x_merged") and case.hyper.get("mode") == "plain_bsm")
def check_plain_matching(case: Case) -> None:
    """The baseline in the same code: ToMe's matching with a ratio of all tokens."""
    metric, hyper = case["metric"], case.hyper
    tokens = metric.shape[1]
    removed = math.floor(tokens - tokens * hyper["ratio"])
    assert hyper.get("r", removed) == removed
    compare_map(case, bipartite_soft_matching(metric, tokens - removed, case.prefix))


@checks("pitome", lambda case: "items" in case.hyper and case.has("T", "r"))
def check_counts(case: Case) -> None:
    """How many patches a share removes."""
    items = case.hyper["items"]
    assert [item[0] for item in items] == case["T"].tolist()
    near(torch.tensor([item[1] for item in items]), case["ratio"], "ratio")
    found = [
        patches + 1 - PiToMe(keep=ratio).plan(shape_of(patches + 1, 1)).stay(0)["merge"] for patches, ratio in items
    ]
    same(torch.tensor(found), case["r"], "r")


@checks("pitome", lambda case: "base_by_patch" in case.hyper)
def check_margins(case: Case) -> None:
    """The margin of every block, from its base."""
    bases = case.hyper["base_by_patch"].values()
    for name in case.names:
        wanted = case[name]
        base = min(bases, key=lambda base, first=float(wanted[0]): abs(base - first))
        near(torch.tensor(margins(base, len(wanted))), wanted, name, 1e-6)


@checks("pitome", is_model_case)
def check_model(case: Case) -> None:
    """A whole model. The released patches never use proportional attention, whatever their option says."""
    hyper, depth = case.hyper, case.constructor_kwargs["depth"]
    method = PiToMe(keep=float(hyper["ratio"]), variant="released", recipe=hyper.get("patch", "deit"))
    ordered = hyper.get("use_bsm_pitome")
    if ordered is not None:
        wanted = ["order" if flag else "protect" for flag in ordered]
        half = math.ceil(depth / 2)
        method = method.with_(modes=(wanted[0], wanted[-1] if depth > half else wanted[0]))
        assert [method.mode(layer, depth) for layer in range(depth)] == wanted
        if "patch" in hyper:
            recipe = method.with_(modes=None)
            assert [recipe.mode(layer, depth) for layer in range(depth)] == wanted
    handle = compare_model(case, method)
    if case.has("margins"):
        base = {"deit": 0.75, "mae": 0.75}[method.recipe]
        near(torch.tensor(margins(base, depth)), case["margins"], "margins", 1e-6)
    if "flops" in hyper:
        shape: ModelShape = formula_shape(case)
        assert cost(shape, handle.schedule.tokens(shape.num_tokens), convention="pitome").macs == hyper["flops"]
