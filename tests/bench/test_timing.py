import time

import pytest
import torch

from tokred.bench import compare
from tokred.bench.memory import peak_memory


def test_the_two_run_in_turn_and_warm_up_does_not_count():
    calls: list[str] = []
    pairs = compare(lambda: calls.append("A"), lambda: calls.append("B"), rounds=3, warmup=1)
    assert "".join(calls) == "AB" + "ABBAAB"
    assert len(pairs.ratios) == len(pairs.base.seconds) == len(pairs.other.seconds) == 3


def test_the_ratio_survives_a_machine_that_slows_down():
    pace = iter([1, 1, 2, 2, 6, 6, 3, 3, 1, 1])
    pairs = compare(lambda: time.sleep(0.02 * next(pace)), lambda: time.sleep(0.01 * next(pace)), rounds=5, warmup=0)
    assert pairs.ratio == pytest.approx(2.0, rel=0.15)
    assert pairs.quartiles[0] <= pairs.ratio <= pairs.quartiles[1]
    assert pairs.base.quantile(0.95) > 2 * pairs.base.median


def test_the_time_limit_leaves_at_least_three_pairs():
    pairs = compare(lambda: time.sleep(0.01), lambda: None, rounds=1000, max_seconds=0.0)
    assert len(pairs.ratios) == 3


def test_peak_memory_counts_what_lives_at_once_and_not_what_came_before():
    before = torch.ones(1000)

    def work() -> None:
        a = before + 1  # 4000 bytes
        b = (a * 2).view(10, 100)[:5]  # 4000 more; views cost nothing
        a.add_(1)
        del a
        c = b.sum()  # a is gone
        assert c.item() > 0

    assert peak_memory(work) == 8000
    assert peak_memory(lambda: before.view(10, 100)) == 0
