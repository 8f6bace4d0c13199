"""Bad input: every mistake ends in a sentence that says what was found, what is allowed and what to try."""

from __future__ import annotations

import pytest
import torch

import tokred
from tokred.adapters.parts import BlockParts
from tokred.token_map import TokenMap

from .adapters import zoo
from .adapters.promises import assert_same, run, snapshot

PLAIN, POOLED, BIASED = "vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "vit_relpos_small_patch16_224"


def small(name=PLAIN, **changes):
    return zoo.build(name, img_size=64, **changes)


class Greedy(tokred.ToMe):
    """Removes one token more than its schedule says."""

    def reduce(self, view):
        kept = torch.arange(view.stay["merge"] - 1).expand(view.batch, -1)
        return TokenMap.select(kept, view.num_tokens)


def refused(model, method, error, sentence):
    """Patching fails with that sentence and leaves everything as it was."""
    before = snapshot(model)
    with pytest.raises(error, match=sentence):
        tokred.patch(model, method)
    assert_same(model, before)


@pytest.mark.parametrize(("r", "tokens"), [(5, (12, 7, 4)), (100, (9, 5, 3)), ([1, 100], (16, 9, 9))])
def test_more_than_half_of_the_patches_is_clamped_to_half(r, tokens):
    model = small()
    with tokred.patch(model, tokred.ToMe(r=r), trace=True) as handle:
        assert handle.schedule.tokens(17) == tokens
        run(model, zoo.images(model))
        assert tuple(handle.trace.tokens_per_layer) == tokens


@pytest.mark.parametrize("r", [-1, [4, -2], (-3, 0.5)])
def test_a_negative_r_is_refused_before_anything_happens(r):
    with pytest.raises(ValueError, match=r"negative"):
        tokred.ToMe(r=r)


@pytest.mark.parametrize("name", [n for n in tokred.methods() if n != "tome"])
@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        (0.0, r"keep=0\.0: a share must lie in \(0, 1\]; write an int for a number of tokens"),
        (-0.5, r"keep=-0\.5: a share must lie in \(0, 1\]"),
        (1.5, r"keep=1\.5: a share must lie in \(0, 1\]"),
        (0, r"keep=0: at least 1 token must stay"),
        (True, r"keep=True: give a number of tokens \(int\) or a share in \(0, 1\] \(float\)"),
    ],
)
def test_a_share_outside_zero_to_one_is_refused_before_anything_happens(name, keep, sentence):
    with pytest.raises(ValueError, match=sentence):
        tokred.methods()[name](keep=keep)


def test_a_schedule_of_another_depth_names_both_depths():
    schedule = tokred.Schedule({"merge": (100,) * 12}, name="deit")
    sentence = r"Schedule deit has 12 layers, the model has 3 blocks\. .*budget instead"
    refused(small(), tokred.ToMe(schedule=schedule), tokred.ScheduleMismatchError, sentence)
    refused(small(), tokred.ToMe(r=[1] * 12), tokred.ScheduleMismatchError, "r lists 12 layers, the model has 3 blocks")
    refused(small(), tokred.TopK(layers=(1, 7)), tokred.ScheduleMismatchError, r"Blocks \[7\] do not exist.*0 to 2")


def test_a_budget_that_no_schedule_reaches_names_the_least():
    refused(small(), tokred.ToMe(budget="1 token"), tokred.BudgetError, r"1 token is out of reach.*needs \d+ tokens")


def test_a_model_without_values_is_refused():
    model = zoo.create(PLAIN, device="meta")
    with pytest.raises(tokred.UnsupportedModelError, match=r"on the meta device.*load the weights first"):
        tokred.patch(model, tokred.ToMe())
    assert all("forward" not in vars(block) for block in model.blocks)


def test_pooling_by_maximum_and_average_is_refused_with_a_way_out():
    model = small(global_pool="avgmax")
    refused(
        model,
        tokred.ToMe(),
        tokred.UnsupportedModelError,
        r"'avgmax'.*reset_classifier\(num_classes, global_pool='avg'\)",
    )


def test_blocks_that_do_not_add_up_are_refused(monkeypatch):
    monkeypatch.setattr(BlockParts, "transform", lambda _parts, _block, x: x)
    refused(
        small(),
        tokred.ToMe(),
        tokred.UnsupportedModelError,
        "with nothing reduced the patched blocks change the output",
    )


def test_a_method_that_ignores_its_schedule_is_refused():
    sentence = r"the schedule says \[9, 5, 3\] tokens, the patched model has \[8, "
    refused(small(), Greedy(r=8), tokred.UnsupportedModelError, sentence)


def test_values_that_are_not_finite_name_the_block_where_they_appear():
    model = small()
    with tokred.patch(model, tokred.ToMe(r=2)):
        assert torch.isfinite(run(model, zoo.images(model))).all()
        model.blocks[1].attn.proj.weight.data[0, 0] = torch.inf
        with pytest.raises(tokred.NonFiniteError, match=r"after the attention of block 1 are not finite, so ToMe"):
            run(model, zoo.images(model))


def test_a_module_between_the_blocks_that_makes_new_tensors_is_named():
    model = small()
    with tokred.patch(model, tokred.ToMe(r=2)):
        model.blocks[0].register_forward_hook(lambda _module, _inputs, output: output.clone())
        with pytest.raises(
            RuntimeError, match=r"Block 1 received tokens without their reduction state.*Reduce by hand"
        ):
            run(model, zoo.images(model))


def test_an_input_size_for_which_no_site_was_patched_is_refused():
    model = small(dynamic_img_size=True)
    schedule = tokred.Schedule({"merge": (20, 20, 10)})
    with tokred.patch(model, tokred.ToMe(schedule=schedule)):
        run(model, torch.randn(1, 3, 64, 64))
        with pytest.raises(
            tokred.ScheduleMismatchError, match=r"With 26 tokens .* earlier block .* Patch the model again"
        ):
            run(model, torch.randn(1, 3, 80, 80))


@pytest.mark.parametrize("name", [PLAIN, POOLED, BIASED, "vit_base_patch16_xp_224", "vit_base_patch16_18x2_224"])
@pytest.mark.parametrize("method", tokred.methods())
def test_no_images_give_no_logits(name, method):
    model = small(name)
    with tokred.patch(model, tokred.methods()[method]()):
        assert run(model, torch.zeros(0, 3, 64, 64)).shape == (0, 10)
