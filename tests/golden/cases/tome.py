"""ToMe: matching, chains of merges, k-th matching, schedules, proportional attention, models."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from timm.layers import Attention

from tokred import LayerView, ToMe
from tokred.adapters.attention import Call, calling
from tokred.adapters.site import key_bias
from tokred.adapters.timm_attention import TimmAttentionReader
from tokred.errors import ScheduleMismatchError
from tokred.methods.tome import bipartite_soft_matching, kth_matching
from tokred.schedule import Removal, removals
from tokred.state import TokenState

from ..case import Case, checks, is_model_case
from ..compare import compare_map, compare_model, near, reduce_as_a_block_does, same, shape_of


@checks("tome", lambda case: case.has("metric", "x", "x_merged") and "k" not in case.hyper)
def check_matching(case: Case) -> None:
    """One merge. A negative r, which the operator of the reference takes for 0, is refused by ``ToMe``."""
    metric, hyper = case["metric"], case.hyper
    r = max(int(hyper.get("r_requested", hyper.get("r", 0))), 0)
    method = ToMe(r=[r])
    stay = method.plan(shape_of(metric.shape[1], case.prefix)).stay(0)
    if "r_effective" in hyper:
        assert stay["merge"] == metric.shape[1] - hyper["r_effective"]
    view = LayerView(case["x"], stay=stay, num_prefix=case.prefix, signals={"keys": metric})
    compare_map(case, reduce_as_a_block_does(method, view))


@checks("tome", lambda case: case.has("x", "metric0", "x1"))
def check_chain(case: Case) -> None:
    """Several merges in a row: cumulative sizes and source."""
    x, state = case["x"], TokenState(case["x"].shape[1])
    for step, r in enumerate(case.hyper["r_per_step"]):
        tokens = x.shape[1]
        token_map = bipartite_soft_matching(
            case[f"metric{step}"], max(tokens - r, (tokens + case.prefix + 1) // 2), case.prefix
        )
        x = token_map.apply(x, state.sizes)
        state = state.after(step, token_map)
        wanted = case[f"source{step + 1}"]
        found = torch.zeros(x.shape[0], x.shape[1], wanted.shape[2]).scatter(1, state.slot().unsqueeze(1), 1.0)
        same(found, wanted, f"source after step {step}")
        near(state.sizes, case.sizes(f"size{step + 1}"), f"sizes after step {step}")
        near(x, case[f"x{step + 1}"], f"tokens after step {step}")


@checks("tome", lambda case: case.has("metric", "x", "x_merged") and "k" in case.hyper)
def check_kth_matching(case: Case) -> None:
    """Every k-th token takes the others in."""
    token_map = kth_matching(case["metric"], case.hyper["k"])
    compare_map(case, token_map)
    if case.has("merged_mean"):
        near(token_map.apply(case["x"]), case["merged_mean"], "merged_mean")


@checks("tome", lambda case: any(re.fullmatch(r"out\d+", name) for name in case.names))
def check_schedules(case: Case) -> None:
    """The three ways to write r."""
    for name in sorted(name for name in case.names if name.startswith("out")):
        item = case.hyper[name.replace("out", "item")]
        if isinstance(item["r"], list) and item["kind"] == "list" and len(item["r"]) > item["num_layers"]:
            with pytest.raises(ScheduleMismatchError):  # the reference ignores what is too much, tokred refuses it
                removals(item["r"], item["num_layers"])
            item["r"] = item["r"][: item["num_layers"]]
            same(torch.tensor(removals(item["r"], item["num_layers"])), case[name][: item["num_layers"]], name)
            continue
        found = removals(_removal(item["r"], item["kind"]), item["num_layers"])
        same(torch.tensor(found), case[name], f"r={item['r']} in {item['num_layers']} layers")


@checks("tome", lambda case: case.has("x", "size", "out_plain", "out_prop"))
@torch.no_grad()
def check_proportional_attention(case: Case) -> None:
    """The bias that the adapter adds, and the keys that it reads, on timm's attention."""
    x, weights = case["x"], case.state_dict()
    attn = Attention(x.shape[2], num_heads=case.hyper["num_heads"], qkv_bias="qkv.bias" in weights).eval()
    attn.load_state_dict(weights)
    state = TokenState(x.shape[1], sizes=case.sizes("size"))
    near(attn(x), case["out_plain"], "attention without sizes")
    reader = TimmAttentionReader()
    hooks = reader.hooks(attn, {"keys"})
    with calling(Call(state)) as call:
        out = attn(x, attn_mask=key_bias(state, True, x.dtype))
        near(out, case["out_prop"], "attention with sizes")
        near(reader.signals(attn, call.caught, {}, case.prefix)["keys"](), case["metric"], "keys")
    for hook in hooks:
        hook.remove()


@checks("tome", is_model_case)
def check_model(case: Case) -> None:
    """A whole model."""
    hyper = case.hyper
    method = ToMe(
        r=_removal(hyper["r"], hyper.get("r_kind")),
        prop_attn=hyper.get("prop_attn", True),
        variant="paper" if _pools_by_size(case) else "released",
    )
    if "parsed" in hyper:
        assert list(removals(method.r, case.constructor_kwargs["depth"])) == hyper["parsed"]
    compare_model(case, method)


def _removal(r: Any, kind: str | None) -> Removal:
    if kind == "tuple":
        return int(r[0]), float(r[1])
    return [int(n) for n in r] if isinstance(r, list) else int(r)


def _pools_by_size(case: Case) -> bool:
    """Whether the case was made with the MAE patch, which weighs tokens by size; the timm patch does not.

    The hyper-parameters may say so. Where they do not: only the MAE patch averages beside a class token.
    """
    for key in ("weighted", "weighted_pooling", "pooling", "pool", "head", "patch"):
        value = case.hyper.get(key)
        if isinstance(value, bool) and key.startswith("weighted"):
            return value
        if isinstance(value, str) and ("unweighted" in value or "timm" in value):
            return False
        if isinstance(value, str) and any(word in value.lower() for word in ("mae", "weight", "size")):
            return True
    kwargs = case.constructor_kwargs
    return kwargs.get("global_pool") == "avg" and kwargs.get("class_token", True)
