"""The prior over codes."""

import pytest
import torch

from tests.tokenizers.tiny import stirred
from tokred.errors import ConfigError, DataError
from tokred.tokenizers.prior import Prior, PriorConfig


def prior(**changes):
    values = {"tokenizer": "some", "vocabulary": 20, "tokens": 6, "classes": ("a", "b"), "width": 32, "depth": 2,
              "head_width": 16, **changes}  # fmt: skip
    return stirred(Prior, PriorConfig(**values))


def greedy_without_cache(model, classes, tokens, scale):
    codes = torch.zeros(len(classes), 0, dtype=torch.int64)
    for _ in range(tokens):
        given = torch.cat([codes, torch.zeros(len(classes), 1, dtype=torch.int64)], 1)
        logits = model(classes, given)[:, -1]
        none = model(torch.full_like(classes, model.no_class), given)[:, -1]
        codes = torch.cat([codes, (none + scale * (logits - none)).argmax(-1, keepdim=True)], 1)
    return codes


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_cache_changes_nothing(scale):
    model, classes = prior(), torch.tensor([0, 1, 2])
    with torch.no_grad():
        wanted = greedy_without_cache(model, classes, 6, scale)
    assert torch.equal(model.generate(classes, guidance=scale, temperature=0), wanted)


def test_a_short_row_is_the_start_of_a_long_one():
    model, classes = prior(), torch.tensor([0, 1])
    long = model.generate(classes, generator=torch.Generator().manual_seed(0))
    short = model.generate(classes, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(long[:, :3], short)


def test_an_id_does_not_see_itself_or_later_ones():
    model, classes = prior(), torch.tensor([0])
    codes = torch.randint(20, (1, 6))
    other = codes.clone()
    other[:, 3:] = (other[:, 3:] + 1) % 20
    with torch.no_grad():
        assert torch.equal(model(classes, codes)[:, :4], model(classes, other)[:, :4])


def test_few_candidates_leave_only_the_likely_ids():
    model, classes = prior(), torch.zeros(50, dtype=torch.int64)
    assert len(model.generate(classes, 1, top_k=2).unique()) <= 2


@pytest.mark.parametrize("classes", [torch.tensor([3]), torch.tensor([-1]), torch.tensor([0.0]), torch.tensor([[0]])])
def test_unknown_classes_are_refused(classes):
    with pytest.raises(DataError, match="0 to 1, or 2 for none"):
        prior().generate(classes)


def test_lengths_and_guidance_that_it_does_not_have_are_refused():
    with pytest.raises(DataError, match="1 to 6"):
        prior().generate(torch.tensor([0]), 7)
    with pytest.raises(ConfigError, match="trained without classes"):
        prior(class_dropout=0.0).generate(torch.tensor([0]), guidance=2.0)
    with pytest.raises(ConfigError, match="heads of 24"):
        prior(head_width=24)
