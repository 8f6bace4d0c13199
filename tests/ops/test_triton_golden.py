"""The numbers of the reference implementations come out with the kernels forced on, too."""

import pytest

from tests.golden import cases  # noqa: F401 - registers the checks
from tests.golden.case import OWN, collect, run_checks
from tokred.ops import dispatch

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning"),
    pytest.mark.skipif(not dispatch.is_interpreted(), reason="the vectors are compared on the CPU"),
]
METHODS = {"tome", "pitome", "diffrate", "zerotprune", "attention_row", "divprune", "zoo_prune", "visionzip", "fopru"}
SELECTED = [case for case in collect(OWN) if case.method in METHODS and "weights" not in case.meta]


@pytest.mark.parametrize("case", SELECTED, ids=lambda case: case.stem)
def test_kernels_reproduce_the_numbers_of_the_references(case, monkeypatch):
    monkeypatch.setenv("TOKRED_KERNELS", "triton")
    assert run_checks(case)


def test_the_selected_vectors_reach_the_kernels(monkeypatch):
    monkeypatch.setenv("TOKRED_KERNELS", "triton")
    reached = set()
    find = dispatch.kernel
    monkeypatch.setattr(dispatch, "kernel", lambda name: reached.add(name) or find(name))
    for method in METHODS:
        for case in [case for case in SELECTED if case.method == method][::3]:
            run_checks(case)
    assert {"bipartite_match", "best_match", "energy", "merge_tokens", "attention_row", "farthest"} <= reached
