"""DiffRate: the merge of sorted tokens, a block, models, published rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokred import ModelShape, Schedule
from tokred.cost import cost
from tokred.learn.diffrate import merge_in_place
from tokred.methods.diffrate import DiffRate, merge_sorted

from ..case import Case, checks, is_model_case
from ..compare import compare_map, compare_model, formula_shape, near, row_order, rows, run_block, same


@checks("diffrate", lambda case: case.has("x", "x_merged", "dst", "similarity"))
def check_merge(case: Case) -> None:
    """Tokens that are sorted already, merged as inference and as training do it."""
    x, kept = case["x"], case.hyper["kept"]
    order = torch.arange(x.shape[1] - case.prefix).expand(x.shape[0], -1)
    token_map = merge_sorted(x, order, x.shape[1], kept, case.prefix)
    same(token_map.into, case["dst"], "dst")
    near(token_map.size_weight[:, kept:], case["similarity"], "similarity")
    compare_map(case, token_map)
    size = case.sizes("size_in")
    masked = merge_in_place(x, size, order, x.shape[1], kept, case.prefix)
    near(masked.apply(x, size), case["x_merged_training"], "x_merged_training")
    near(masked.apply_size(size), case.sizes("size_out_training"), "size_out_training")


@checks("diffrate", lambda case: case.has("x", "y", "size_out", "source"))
def check_block(case: Case) -> None:
    """A whole block: attention with sizes, sort, prune, merge, MLP."""
    tokens = case["x"].shape[1]
    y, state, _ = run_block(case, DiffRate(schedule=_schedule(case.hyper, tokens, 1)))
    found, wanted = state.steps[-1].map.to_source_matrix(), case["source"]
    order, wanted_order = row_order(found), row_order(wanted)
    same(rows(found, order), rows(wanted, wanted_order), "source")
    sizes = state.sizes if state.sizes is not None else torch.ones(y.shape[:2])
    near(rows(sizes, order), rows(case.sizes("size_out"), wanted_order), "size_out")
    near(rows(y, order), rows(case["y"], wanted_order), "y")


@checks("diffrate", is_model_case)
def check_model(case: Case) -> None:
    """A whole model in evaluation mode."""
    shape = formula_shape(case)
    handle = compare_model(case, DiffRate(schedule=_schedule(case.hyper, shape.num_tokens, shape.depth)))
    if "flops" in case.hyper:
        found = cost(shape, handle.schedule.tokens(shape.num_tokens), convention="diffrate").macs
        assert found == pytest.approx(case.hyper["flops"], rel=1e-6)


@checks("diffrate", lambda case: any(name.endswith(".gflops") for name in case.names))
def check_published_rates(case: Case) -> None:
    """What published rates cost, by the formula of the paper."""
    for name, model in case.hyper.items():
        shape = ModelShape.vit(
            depth=model["depth"], dim=model["dim"], heads=1, patches=model["patches"], patch_size=model["patch"]
        )
        tracks = {"prune": tuple(case[f"{name}.prune"].tolist()), "merge": tuple(case[f"{name}.merge"].tolist())}
        method = DiffRate(schedule=Schedule(tracks))
        same(torch.tensor(method.plan(shape).tokens(shape.num_tokens)), case[f"{name}.tokens"], f"tokens of {name}")
        found = method.cost(shape, convention="diffrate").gmacs
        assert found == pytest.approx(case[f"{name}.gflops"].item(), rel=1e-5), f"cost of {name}"


def _schedule(hyper: dict[str, Any], tokens: int, depth: int) -> Schedule:
    """The two lists of a case; one that is missing does nothing."""
    prune, merge = (_counts(hyper.get(name), depth) for name in ("prune_kept", "merge_kept"))
    prune = prune or (tokens,) * depth
    return Schedule({"prune": prune, "merge": merge or prune})


def _counts(value: Any, depth: int) -> tuple[int, ...] | None:
    if value is None or value == "None":
        return None
    return (value,) * depth if isinstance(value, int) else tuple(value)
