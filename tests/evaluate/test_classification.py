"""Counting right answers."""

import math

import pytest
import torch
from torch import nn

from tokred.evaluate.classification import Accuracy, top1


class Echo(nn.Module):
    """Names the class that the picture says."""

    def forward(self, images):
        return nn.functional.one_hot(images[:, 0, 0, 0].long(), 3).float()


def batches(said, truth, size):
    images = torch.tensor(said).float().view(-1, 1, 1, 1)
    return zip(images.split(size), torch.tensor(truth).split(size), strict=True)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_right_answers_are_counted_whatever_the_batch_size(size):
    accuracy = top1(Echo(), batches([0, 1, 2, 0, 1], [0, 1, 2, 1, 0], size))
    assert accuracy == Accuracy(3, 5)
    assert accuracy.top1 == 60.0


def test_the_model_is_given_back_in_the_mode_it_was_in():
    model = Echo().train()
    seen = []
    model.register_forward_hook(lambda module, *_: seen.append(module.training))
    top1(model, batches([0], [0], 1))
    assert seen == [False]
    assert model.training


def test_a_failing_forward_gives_the_model_back_too():
    model = Echo().train()
    with pytest.raises(ValueError, match="not enough values"):
        top1(model, [(torch.zeros(1, 1, 1, 1),)])  # type: ignore[list-item]
    assert model.training


def test_nothing_counted_is_not_a_number():
    assert math.isnan(top1(Echo(), []).top1)
