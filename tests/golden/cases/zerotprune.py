"""Zero-TPrune: votes, head filter, stage S, a whole pruning layer, models."""

from __future__ import annotations

import torch
from torch import Tensor

from tokred import LayerView, Schedule, ops
from tokred.methods.zerotprune import ZeroTPrune, among, drop_similar, halves, head_filter, importance
from tokred.token_map import take

from ..case import Case, checks, is_model_case
from ..compare import attention_signals, compare_model, formula_shape, near, same

PARTITIONS = {
    "seq_u": "unimportant_first",
    "sequential_u": "unimportant_first",
    "seq_i": "important_first",
    "sequential_i": "important_first",
    "alt": "alternate",
    "alternate": "alternate",
}
STARTS = {"cls": "cls", "uniform": "uniform", "uni": "uniform"}
_PREFIX = 1  # the vectors' class token


def _is_known(case: Case) -> bool:
    return case.hyper.get("partition", "seq_u") in PARTITIONS and case.hyper.get("init", "cls") in STARTS


def _bounds(case: Case) -> dict[str, float]:
    """Bounds of the head filter; one that is missing lets everything pass."""
    v_min, v_max = case.hyper.get("v_min"), case.hyper.get("v_max")
    return {"v_min": -torch.inf if v_min is None else v_min, "v_max": torch.inf if v_max is None else v_max}


@checks("zerotprune", lambda case: case.has("attn", "per_head", "importance") and _is_known(case))
def check_votes(case: Case) -> None:
    """Page rank, the heads that pass the filter, and the importance with and without the filter."""
    attn, hyper = case["attn"], case.hyper
    cls, rounds = STARTS[hyper["init"]] == "cls", hyper["iterations"]
    bounds = _bounds(case)
    votes = ops.page_rank(attn, ops.first_votes(attn.shape[:3], cls, None, attn.device), rounds)
    near(votes, case["per_head"], "per_head")
    if case.has("head_mask"):
        mask = case["head_mask"]
        fallback = torch.where(mask.any(dim=1, keepdim=True), mask, 1)  # no head passes: all count
        same(head_filter(votes, _PREFIX, **bounds), fallback.float(), "head_mask")
    if case.has("head_variance"):
        _compare_variance(votes, case["head_variance"])
    near(importance(attn, rounds, cls, _PREFIX, **bounds), case["importance"], "importance")
    if case.has("importance_no_filter"):
        found = importance(attn, rounds, cls, _PREFIX, v_min=-torch.inf, v_max=torch.inf)
        near(found, case["importance_no_filter"], "importance_no_filter")


def _compare_variance(votes: Tensor, wanted: Tensor) -> None:
    """The filter tells the variance of a head: it passes narrow bounds around the right value, and others do not."""
    for value in wanted.flatten().tolist():
        low, high = value * 0.999 - 1e-7, value * 1.001 + 1e-7
        inside = (wanted >= low) & (wanted <= high)
        expected = torch.where(inside.any(dim=1, keepdim=True), inside, True)
        same(head_filter(votes, _PREFIX, low, high), expected.float(), f"heads of variance {value:.3g}")


@checks("zerotprune", lambda case: case.has("feat", "importance", "kept") and _is_known(case))
def check_similarity_stage(case: Case) -> None:
    """Stage S on patches."""
    features, score, partition = case["feat"], case["importance"], PARTITIONS[case.hyper["partition"]]
    source, target = halves(score, partition)
    if case.has("group_a", "group_b"):
        same(source, case["group_a"], "group_a")
        same(target, case["group_b"], "group_b")
    best, _ = ops.best_match(take(features, source), take(features, target))
    if case.has("best_similarity"):
        near(best, case["best_similarity"], "best_similarity")
    if case.has("pruned"):
        wanted = case["pruned"]
        same(source.gather(1, ops.rank_descending(best))[:, : wanted.shape[1]], wanted, "pruned")
    same(drop_similar(features, score, case.hyper["r"], 0, partition), case["kept"], "kept")


@checks("zerotprune", lambda case: case.has("attn", "keys", "kept") and _is_known(case))
def check_layer(case: Case) -> None:
    """Stages I', S and I."""
    attn, hyper = case["attn"], case.hyper
    tokens, bounds = attn.shape[-1], _bounds(case)
    pre_rounds = hyper.get("pre_iterations", 1)
    method = ZeroTPrune(
        iterations=hyper["iterations"],
        pre_iterations=pre_rounds,
        start=STARTS[hyper["init"]],
        partition=PARTITIONS[hyper["partition"]],
        **bounds,
    )

    def reduced(similarity: int, importance: int) -> Tensor:
        view = LayerView(
            torch.zeros(attn.shape[0], tokens, 1),
            stay={"similarity": similarity, "importance": importance},
            num_prefix=_PREFIX,
            scale=1.0,
            signals={**attention_signals(attn), "head_keys": case["keys"]},
        )
        return method.reduce(view).kept

    after_s = tokens - hyper["r_s"]
    same(reduced(after_s, after_s - hyper["n_i"]), case["kept"], "kept")
    if case.has("after_s"):
        same(reduced(after_s, after_s), case["after_s"], "after_s")
    if case.has("pruned_s"):
        gone = torch.ones(attn.shape[0], tokens).scatter(1, reduced(after_s, after_s), 0)
        same(gone.nonzero()[:, 1].reshape(attn.shape[0], -1), case["pruned_s"].sort(dim=1).values, "pruned_s")
    cls = method.start == "cls"
    if case.has("pre_importance"):
        near(importance(attn, pre_rounds, cls, _PREFIX, **bounds), case["pre_importance"], "pre_importance")
    if case.has("after_s", "importance"):
        reduced_attn = among(attn, case["after_s"])
        near(importance(reduced_attn, hyper["iterations"], cls, _PREFIX, **bounds), case["importance"], "importance")


@checks("zerotprune", lambda case: is_model_case(case) and _is_known(case))
def check_model(case: Case) -> None:
    """A whole model that prunes after some blocks."""
    hyper, shape = case.hyper, formula_shape(case)
    layers = {int(layer): rates for layer, rates in hyper["config"].items()}
    similarity, importance, rounds, tokens = [], [], [], shape.num_tokens
    for layer in range(shape.depth):
        rates = layers.get(layer, {})
        similarity.append(tokens - rates.get("r_s", 0))
        tokens = similarity[-1] - rates.get("n_i", 0)
        importance.append(tokens)
        rounds.append(rates.get("iterations", 1))
    pre_rounds = {rates.get("pre_iterations", 1) for rates in layers.values()}
    assert len(pre_rounds) == 1, "one number of rounds in stage I' for all blocks"
    method = ZeroTPrune(
        schedule=Schedule({"similarity": tuple(similarity), "importance": tuple(importance)}),
        iterations=tuple(rounds),
        pre_iterations=hyper.get("pre_iterations", pre_rounds.pop()),
        start=STARTS[hyper["init"]],
        partition=PARTITIONS[hyper["partition"]],
        **_bounds(case),
    )
    compare_model(case, method)
