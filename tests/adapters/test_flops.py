"""Counting the cost of a stem agrees with torch's own counter, and leaves the other threads alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tokred.adapters.flops import FlopCounter


def model():
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Flatten(2), nn.Linear(49, 5), nn.GELU(), nn.Linear(5, 2))


def test_the_count_is_that_of_torch():
    stem, x = model(), torch.randn(2, 3, 16, 16)
    with FlopCounterMode(display=False) as reference:
        stem(x)
    with FlopCounter() as counter:
        stem(x)
    assert counter.get_total_flops() == reference.get_total_flops() > 0


def test_modules_in_other_threads_see_no_hook_and_are_not_counted():
    stem, x = model(), torch.randn(2, 3, 16, 16)
    with FlopCounter() as counter, ThreadPoolExecutor(1) as other:
        assert not torch.nn.modules.module._global_forward_hooks
        other.submit(stem, x).result()
    assert counter.get_total_flops() == 0
