"""The checks notice every number that changes, and every file without a check is noticed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from .case import OWN, Case, checks_of, collect, run_checks

_VIT = OWN[0]
# what a reduction starts from; all other tensors are results
_INPUT = re.compile(
    r"image|x|metric\d*|size_in|size|attn|value|mask|keys|feat|sd\..*|(?!grad_).*\.(prune|merge)|importance"
)
_RESULTS = {
    ("zerotprune", "importance"),
    ("aim", "importance"),
    ("tome", "size"),
    ("pitome", "size"),
    ("diffrate", "size"),
    ("diffrate", "attn"),
    ("diffrate", "mask"),
}
# what else the vectors of single methods start from
_INPUTS = {
    "aim": {"attn_logits"},
    "atp": {"attn_logits", "soft_masks", "w_z", "b_z", "w_r", "b_r", "w_s", "b_s"},
    "attention_row": {"q", "k"},
    "fastv": {"last_row_attention"},
    "fopru": {"attention"},
    "globalcom2": {"cls_logits"},
    "dynamicvit": {"policy"},
    "kmedoids": {"weight"},
    "hired": {"cls_attention_init", "cls_attention_final"},
    "model": {"input_ids", "pixel_values", "image_sizes"},
    "prumerge": {"q_cls", "k"},
    "visionzip": {"cls_attention", "hidden"},
    "vtc_cls": {"cls_attention"},
    "zoo_prune": {"noise", "proj_w1", "proj_b1", "proj_w2", "proj_b2"},
}
# the same for tokenizers, whose vectors name no method
_TOKENIZER_INPUT = re.compile(
    r"(.*/)?param/.*|(.*/)?(z|t)|.*/(levels|grad_out|ids|draw|context|in)|packed/z\d|x|x0|noise|latents|temb|mask|loss_t|"
    r"(ragged/)?keep_k|mask_token|drop_flags|nullcond|registers\d?|patches\d|.*_table|emb|emb_shared|patchify_in|cond|"
    r"uncond|halt_logits|first_phase_budget|quality_request"
)


def _is_result(case: Case, name: str) -> bool:
    if not case.method:
        return _TOKENIZER_INPUT.fullmatch(name) is None
    if name in _INPUTS.get("model" if case.method.startswith("model_") else case.method, ()):
        return False
    if case.method == "zoo_prune" and not case.has("noise"):  # the choice alone
        return name not in ("sensitivity", "projected")
    if (case.method, name) in _RESULTS:
        given = case.has("feat") or case.has("keep_mask_after_layer")
        return not (name == "importance" and given) and not (name == "size" and case.has("out_prop"))
    return _INPUT.fullmatch(name) is None


@pytest.mark.parametrize("case", collect(OWN), ids=lambda case: case.stem)
def test_a_changed_result_is_noticed(case: Case):
    results = [name for name in sorted(case.names) if _is_result(case, name)]
    assert results, "a vector without results checks nothing"
    for name in _thinned(results):
        changed = Case(case.path)
        tensor = changed[name].clone()
        step = 0.01 * max(1.0, float(tensor.abs().max())) if tensor.is_floating_point() else 1
        tensor.view(-1)[tensor.numel() // 2] += step
        changed.replace(name, tensor)
        with pytest.raises(AssertionError):
            run_checks(changed)


def _thinned(results: list[str]) -> list[str]:
    """Of a hundred gradients with like names, the first, the middle and the last."""
    groups: dict[str, list[str]] = {}
    for name in results:
        groups.setdefault(name.rsplit("/", 1)[0], []).append(name)
    picked = [group if len(group) < 12 else [group[0], group[len(group) // 2], group[-1]] for group in groups.values()]
    return [name for group in picked for name in group]


@pytest.mark.parametrize("case", collect(OWN), ids=lambda case: case.stem)
def test_every_stored_vector_has_one_check_that_fits(case: Case):
    assert checks_of(case)


def test_weights_are_no_vectors():
    stems = [case.stem for case in collect(OWN)]
    assert stems
    assert not [stem for stem in stems if stem.startswith("weights__") or stem.endswith("__weights")]
    files = {path.stem for folder in OWN for path in folder.glob("*.safetensors")}
    weights = {stem for stem in files if "weights" in (stem.split("__")[0], stem.split("__")[-1])}
    assert len(stems) == len(set(stems)) == len(files - weights)


def test_a_single_file_can_be_given_and_finds_its_weights_beside_it():
    (case,) = collect([_VIT / "tome__model_cls_r8.safetensors"])
    assert case.model().num_prefix_tokens == 1


def test_the_name_of_a_file_decides_nothing(tmp_path: Path):
    case = Case(_VIT / "tome__op_cls_odd.safetensors")
    renamed = tmp_path / "pitome__something_else.safetensors"
    save_file({name: case[name] for name in case.names}, renamed, metadata=case.meta)
    assert checks_of(Case(renamed)) == checks_of(case)


def test_a_vector_of_an_unknown_method_or_with_unknown_tensors_has_no_check(tmp_path: Path):
    path = tmp_path / "tome__op_cls_odd.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"method": "nobody-knows", "hyper_parameters": "{}"})
    assert checks_of(Case(path)) == []
    save_file({"surprise": torch.zeros(1)}, path, metadata={"method": "tome", "hyper_parameters": "{}"})
    assert checks_of(Case(path)) == []


def test_tensors_that_no_check_looks_at_are_named(tmp_path: Path):
    case = Case(_VIT / "diffrate__op_merge_cls.safetensors")
    tensors = {name: case[name] for name in case.names} | {"surprise": torch.zeros(1)}
    save_file(tensors, tmp_path / "more.safetensors", metadata=case.meta)
    case = Case(tmp_path / "more.safetensors")
    run_checks(case)
    assert case.unread() == ["surprise"]
