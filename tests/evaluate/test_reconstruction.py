"""Measures of reconstruction."""

import sys

import pytest
import torch

from tests.tokenizers.tiny import flextok, pictures
from tokred.errors import TokredError
from tokred.evaluate.reconstruction import bits, curve, frechet_distance, mean_image_psnr, psnr, ssim
from tokred.tokenizers.base import lengths


def test_the_curve_is_that_of_single_estimates_and_does_not_depend_on_batches():
    model, images = flextok(), pictures(5)
    found = curve(model, images, lengths(6), batch_size=2)
    assert list(found) == [1, 2, 4, 6]
    noise = model.draw_noise(5, torch.Generator().manual_seed(0))
    codes = model.encode(images)
    for k, value in found.items():
        alone = psnr(model.estimate(codes[:, :k], noise=noise), model.prepare(images)).mean()
        assert value == pytest.approx(float(alone), abs=1e-4)


def test_the_mean_image_is_a_baseline():
    known = torch.full((3, 1, 4, 4), 100, dtype=torch.uint8)
    assert mean_image_psnr(known, torch.full((1, 1, 4, 4), 151, dtype=torch.uint8)) == pytest.approx(13.98, abs=0.01)


def test_equal_sets_have_no_distance_and_shifted_ones_the_square_of_the_shift():
    features = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + 2) == pytest.approx(24, abs=1e-3)


def test_ssim_of_a_picture_with_itself_is_one():
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    torch.testing.assert_close(ssim(images, images), torch.ones(2))
    assert (ssim(images, images.flip(-1)) < 0.5).all()


def test_without_torchmetrics_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(TokredError, match=r"tokred\[sweep\]"):
        ssim(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))


def test_bits_are_those_of_the_ids():
    assert bits(flextok(), 3) == pytest.approx(3 * 5.3219, abs=1e-3)
