"""What is read from logits: hits among five, how sure a model is, and which class pays for a reduction."""

import pytest
import torch

from tokred.sweep.measure import label_columns
from tokred.sweep.predictions import Predictions


def test_the_label_may_be_any_of_the_first_five_and_its_rank_does_not_depend_on_how_images_were_cut():
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1, 0]]).repeat(7, 1)
    whole = Predictions.of(logits, torch.arange(7))
    assert whole.rank.tolist() == list(range(7))
    assert (whole.top1, whole.top5) == (pytest.approx(100 / 7), pytest.approx(500 / 7))
    cut = Predictions.join(
        [Predictions.of(logits[:3], torch.arange(3)), Predictions.of(logits[3:], torch.arange(3, 7))]
    )
    assert torch.equal(cut.rank, whole.rank)


def test_a_label_that_the_model_does_not_know_is_behind_all_classes():
    assert Predictions.of(torch.eye(3), torch.tensor([0, 1, 7])).rank.tolist() == [0, 0, 3]


def test_the_class_that_loses_most_is_named():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    unpatched = torch.tensor([0, 0, 0, 0, 1, 1, 2, 1])
    reached = Predictions.of(torch.eye(3)[[0, 0, 0, 1, 1, 0, 2, 2]], labels)
    found = label_columns(reached, unpatched, lambda index: "abc"[int(index)])
    assert (found["worst_class"], found["worst_class_drop"]) == ("b", 50.0)  # a loses a quarter, c gains
    same = label_columns(reached, reached.predicted, lambda index: "abc"[int(index)])
    assert (same["worst_class"], same["worst_class_drop"]) == (None, 0.0)
