"""Overlays: merged regions in their mean colour, dropped patches dimmed, the rest as it was."""

import numpy as np
import pytest
import torch

from tokred.viz import draw_overlay


def picture(slots, image=None):
    image = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16) if image is None else image
    [drawn] = draw_overlay(image, torch.tensor([slots]), (2, 2))
    return np.asarray(drawn).astype(int)


def test_patches_that_stand_alone_are_shown_as_they_are():
    plain, other = picture([0, 1, 2, 3]), picture([3, 2, 1, 0])
    assert np.array_equal(plain, other)
    assert plain.shape == (224, 224, 3)


def test_dropped_patches_are_dimmed_to_a_quarter():
    plain, dropped = picture([0, 1, 2, 3]), picture([0, 1, 2, -1])
    assert np.array_equal(dropped[:112], plain[:112])
    assert np.abs(dropped[113:, 113:] - plain[113:, 113:] / 4).max() <= 1


def test_a_merged_region_has_one_colour_and_an_outline_of_its_own():
    drawn = picture([0, 0, 1, 2])
    inside = drawn[5:107, 5:219].reshape(-1, 3)
    assert len(np.unique(inside, axis=0)) == 1
    assert tuple(drawn[0, 100]) == tuple(drawn[111, 100]) == (255, 196, 0)
    assert tuple(drawn[50, 112]) != (255, 196, 0), "no line between patches of one region"


def test_grey_images_and_any_value_range_are_drawn():
    drawn = picture([0, 1, 2, 3], torch.randn(1, 1, 4, 4) * 100)
    assert drawn.min() == 0
    assert drawn.max() == 255


def test_another_batch_than_the_traced_one_is_refused():
    with pytest.raises(ValueError, match="3 images were given, the traced forward saw 1"):
        draw_overlay(torch.zeros(3, 3, 8, 8), torch.zeros(1, 4, dtype=torch.int64), (2, 2))
