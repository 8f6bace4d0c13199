"""A model that is as often right as it is sure is calibrated; one that is surer is off by the difference."""

import numpy as np
import pytest
import torch

from tokred.evaluate.calibration import calibration_error


def by_the_definition(confidence: list[float], right: list[bool], bins: int) -> float:
    """Bin by bin, from the formula."""
    total = 0.0
    for index in range(bins):
        low, high = index / bins, (index + 1) / bins
        inside = [i for i, sure in enumerate(confidence) if low < sure <= high]
        if inside:
            gap = np.mean([right[i] for i in inside]) - np.mean([confidence[i] for i in inside])
            total += len(inside) / len(right) * abs(gap)
    return 100 * total


def test_it_is_what_the_definition_says():
    chance = np.random.default_rng(0)
    confidence, right = chance.uniform(0.1, 1.0, 200), chance.uniform(size=200) < 0.6
    found = calibration_error(torch.tensor(confidence), torch.tensor(right))
    assert found == pytest.approx(by_the_definition(confidence.tolist(), right.tolist(), 15))


def test_bins_hide_what_evens_out_inside_and_nothing_else():
    confidence = torch.tensor([0.50, 0.52])
    assert calibration_error(confidence, torch.tensor([True, False])) == pytest.approx(1.0, abs=1e-4)
    apart = torch.tensor([0.2, 0.9])
    assert calibration_error(apart, torch.tensor([True, False])) == pytest.approx(85.0, abs=1e-4)


def test_certainty_falls_into_the_last_bin():
    assert calibration_error(torch.tensor([1.0, 1.0]), torch.tensor([True, True])) == 0.0
    assert calibration_error(torch.tensor([1.0, 0.0]), torch.tensor([False, True])) == 100.0
