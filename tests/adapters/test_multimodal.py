"""Multimodal models of transformers are short inside and full outside, and equal to prompts that are cut by hand."""

from __future__ import annotations

import pytest
import torch

import tokred
from tokred.methods.divprune import DivPrune
from tokred.methods.features import FeatureMethod, Positions
from tokred.methods.fopru import FoPru

from . import zoo_multimodal as zoo
from .short_runs import greedy, kept_tokens, short_logits


def method_for(name: str, keep: float, positions: Positions = "renumbered") -> FeatureMethod:
    """One that reads attention where that can be read."""
    return (FoPru if zoo.BY_NAME[name].reads else DivPrune)(keep=keep, positions=positions)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_keeping_everything_changes_nothing(name: str):
    model = zoo.build(name)
    inputs = zoo.prompts(name, model, [1, 0, 2])
    with torch.no_grad():
        before = model(**inputs).logits
        with tokred.patch(model, method_for(name, 1.0)):
            assert torch.equal(model(**inputs).logits, before)
        assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("positions", ["renumbered", "original"])
@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_padded_batch_equals_every_prompt_cut_by_hand(name: str, positions: Positions):
    model = zoo.build(name)
    inputs = zoo.prompts(name, model, [1, 2, 0, 1])
    with torch.no_grad(), tokred.patch(model, method_for(name, 0.4, positions)) as handle:
        logits = model(**inputs).logits
        sequences = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    kept = kept_tokens(handle)
    real = inputs["attention_mask"].sum(dim=1)
    assert [len(index) < n for index, n in zip(kept, real, strict=True)] == [True, True, False, True]
    renumber = positions == "renumbered"
    for b, expected in enumerate(short_logits(model, inputs, kept, renumber=renumber)):
        torch.testing.assert_close(logits[b, kept[b]], expected, atol=1e-4, rtol=1e-4)
    prompt = inputs["input_ids"].shape[1]
    assert torch.equal(sequences[:, :prompt], inputs["input_ids"])
    assert torch.equal(sequences[:, prompt:], greedy(model, inputs, kept, 4, renumber))


@pytest.mark.parametrize("name", [kind.name for kind in zoo.KINDS if not kind.reads])
def test_attention_is_not_read_where_visual_tokens_are_no_groups_of_patches(name: str):
    model = zoo.build(name)
    with pytest.raises(tokred.UnsupportedModelError, match=r"tokens come from patches.*tokred\.DivPrune"):
        tokred.patch(model, FoPru())
    assert "get_image_features" not in vars(model.model)
