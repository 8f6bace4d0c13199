"""The checks notice every number that changes, and every file without a check is noticed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from .case import Case, checks_of, collect, run_checks

_OWN = Path(__file__).parent / "vit"
# what a reduction starts from; all other tensors are results
_INPUT = re.compile(
    r"image|x|metric\d*|size_in|size|attn|value|mask|keys|feat|sd\..*|.*\.(prune|merge)|importance|size_out_training|"
    r"x_merged_training"
)
_RESULTS = {("zerotprune", "importance"), ("tome", "size"), ("pitome", "size"), ("diffrate", "size")}


def _is_result(case: Case, name: str) -> bool:
    if (case.method, name) in _RESULTS:
        return not (name == "importance" and case.has("feat")) and not (name == "size" and case.has("out_prop"))
    return _INPUT.fullmatch(name) is None


@pytest.mark.parametrize("case", collect([_OWN]), ids=lambda case: case.stem)
def test_a_changed_result_is_noticed(case: Case):
    results = [name for name in sorted(case.names) if _is_result(case, name)]
    assert results, "a vector without results checks nothing"
    for name in results:
        changed = Case(case.path)
        tensor = changed[name].clone()
        tensor.view(-1)[tensor.numel() // 2] += 0.01 if tensor.is_floating_point() else 1
        changed.replace(name, tensor)
        with pytest.raises(AssertionError):
            run_checks(changed)


@pytest.mark.parametrize("case", collect([_OWN]), ids=lambda case: case.stem)
def test_every_stored_vector_has_one_check_that_fits(case: Case):
    assert checks_of(case)


def test_weights_are_no_vectors():
    stems = [case.stem for case in collect([_OWN])]
    assert stems
    assert not [stem for stem in stems if stem.startswith("weights__")]
    assert len(stems) == len(set(stems)) == len(list(_OWN.glob("*.safetensors"))) - len(list(_OWN.glob("weights__*")))


def test_a_single_file_can_be_given_and_finds_its_weights_beside_it():
    (case,) = collect([_OWN / "tome__model_cls_r8.safetensors"])
    assert case.model().num_prefix_tokens == 1


def test_the_name_of_a_file_decides_nothing(tmp_path: Path):
    case = Case(_OWN / "tome__op_cls_odd.safetensors")
    renamed = tmp_path / "pitome__something_else.safetensors"
    save_file({name: case[name] for name in case.names}, renamed, metadata=case.meta)
    assert checks_of(Case(renamed)) == checks_of(case)


def test_a_vector_of_an_unknown_method_or_with_unknown_tensors_has_no_check(tmp_path: Path):
    path = tmp_path / "tome__op_cls_odd.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"method": "nobody-knows", "hyper_parameters": "{}"})
    assert checks_of(Case(path)) == []
    save_file({"surprise": torch.zeros(1)}, path, metadata={"method": "tome", "hyper_parameters": "{}"})
    assert checks_of(Case(path)) == []


def test_tensors_that_no_check_looks_at_are_named():
    case = Case(_OWN / "diffrate__op_merge_cls.safetensors")
    run_checks(case)
    assert case.unread() == ["size_out_training", "x_merged_training"]
