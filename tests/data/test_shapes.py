"""Drawn shapes, and pictures made square."""

import pytest
import torch
from PIL import Image

from tokred.data.shapes import MOST, draw_shapes, shapes
from tokred.data.square import fit, square
from tokred.errors import DataError


def test_a_seed_draws_the_same_pictures_and_every_count():
    images, counts = draw_shapes(120, seed=3)
    again, _ = draw_shapes(120, seed=3)
    assert torch.equal(images, again)
    assert images.shape == (120, 3, 64, 64)
    assert images.dtype == torch.uint8
    assert counts.unique().tolist() == list(range(MOST))
    assert not torch.equal(images, draw_shapes(120, seed=4)[0])


def test_more_shapes_make_busier_pictures():
    images, counts = draw_shapes(300)
    x = images.float()
    edges = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
    assert torch.corrcoef(torch.stack([edges, counts.float()]))[0, 1] > 0.5


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match="train, test"):
        shapes("validation")


@pytest.mark.parametrize("size", [(30, 20), (8, 40), (16, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_picture_becomes_square(size, channels):
    picture = Image.new("RGBA", size, (255, 255, 255, 255))
    found = square(picture, 16, channels)
    assert found.shape == (channels, 16, 16)
    assert (found == 255).all()


def test_small_pictures_get_a_border_and_large_ones_are_resized():
    white = torch.full((2, 1, 28, 28), 255, dtype=torch.uint8)
    framed = fit(white, 32, 1)
    assert torch.equal(framed[:, :, 2:30, 2:30], white)
    assert framed.sum() == white.sum()
    assert fit(white, 16, 3).shape == (2, 3, 16, 16)
    assert (fit(white.expand(-1, 3, -1, -1), 16, 1) == 255).all()
