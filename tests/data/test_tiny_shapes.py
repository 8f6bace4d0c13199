"""Tiny shapes: the same questions about pictures whose shape is small, somewhere, and grainy."""

import pytest
import torch

from tokred.data import easy_vqa_sample
from tokred.data.tiny_shapes import GRAIN, MARGIN, SIDES, with_tiny_shapes


@pytest.fixture(scope="module")
def source():
    return easy_vqa_sample()


@pytest.fixture(scope="module")
def tiny(source):
    return with_tiny_shapes(source, seed=3)


def difference(image):
    """From the ground, in the channel where it is greatest [H, W]."""
    ground = image.flatten(1).median(dim=1).values[:, None, None]
    return (image.float() - ground).abs().amax(0)


def shown(image):
    """Where something differs from the ground by more than grain does, bool [H, W]."""
    return difference(image) > 6 * GRAIN


def boldest(image):
    """The color of the pixel that differs most [3]."""
    return image.flatten(1)[:, difference(image).argmax()].float()


def test_a_shape_is_tiny_and_keeps_clear_of_the_edges(tiny):
    for index in range(60):
        rows, columns = (shown(tiny.pictures[index][0]).any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
        for places in (rows, columns):
            assert int(places[-1] - places[0]) < SIDES[1]
            assert int(places[0]) >= MARGIN
            assert int(places[-1]) < 64 - MARGIN


def test_the_shape_keeps_its_color_and_the_ground_its_own(source, tiny):
    for index in range(20):
        (old,), (new,) = source.pictures[index], tiny.pictures[index]
        assert (old.flatten(1).median(1).values.float() - new.flatten(1).median(1).values.float()).abs().max() <= 2
        assert (boldest(old) - boldest(new)).abs().max() < 4 * GRAIN


def test_shapes_are_everywhere(tiny):
    middles = torch.stack([shown(tiny.pictures[i][0]).nonzero().float().mean(0) for i in range(200)])
    assert middles.min() < 12
    assert middles.max() > 52


def test_picture_and_seed_decide_everything(source, tiny):
    again = with_tiny_shapes(source, seed=3)
    assert torch.equal(tiny.pictures[7][0], again.pictures[7][0])
    assert not torch.equal(tiny.pictures[7][0], with_tiny_shapes(source, seed=4).pictures[7][0])
    assert tiny.questions == source.questions


def test_further_drawings_are_of_the_same_pictures_and_the_first_stays(source, tiny):
    twice = with_tiny_shapes(source, seed=3, times=2)
    count = len(source.pictures)
    assert len(twice.pictures) == 2 * count
    assert torch.equal(twice.pictures[7][0], tiny.pictures[7][0])
    assert not torch.equal(twice.pictures[count + 7][0], tiny.pictures[7][0])
    asked = [[(question.text, question.answer) for question in twice.about(index)] for index in (7, count + 7)]
    assert asked[0] == asked[1]
