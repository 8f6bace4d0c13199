"""Interleaved timing: the only clock of this package.

Two functions run in pairs, A B, B A, A B ..., and each B is compared with the A beside it. What else the machine does
slows both of a pair, and turning the pairs round cancels a slow drift and what the first place is worth; so the median
of the ratios holds where the seconds themselves do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of every timed call, in order."""

    seconds: tuple[float, ...]

    def quantile(self, q: float) -> float:
        """The ``q``-quantile in seconds, linear between samples."""
        return float(np.quantile(self.seconds, q))

    @property
    def median(self) -> float:
        """Half of the calls took longer."""
        return self.quantile(0.5)


@dataclass(frozen=True)
class Comparison:
    """The same work done in two ways, in pairs.

    >>> pairs = Comparison(Timing((2.0, 4.0, 3.0)), Timing((1.0, 2.0, 2.0)))
    >>> pairs.ratios, pairs.ratio
    ((2.0, 2.0, 1.5), 2.0)
    """

    base: Timing
    other: Timing

    @classmethod
    def together(cls, parts: Sequence[Comparison]) -> Comparison:
        """The pairs of several comparisons, one behind another."""
        base = [seconds for part in parts for seconds in part.base.seconds]
        other = [seconds for part in parts for seconds in part.other.seconds]
        return cls(Timing(tuple(base)), Timing(tuple(other)))

    @property
    def ratios(self) -> tuple[float, ...]:
        """Seconds of the first over seconds of the second, pair by pair: above 1, the second is faster."""
        return tuple(a / b for a, b in zip(self.base.seconds, self.other.seconds, strict=True))

    @property
    def ratio(self) -> float:
        """Median of the ratios: the speed-up of the second over the first."""
        return float(np.median(self.ratios))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The middle half of the ratios lies between these two."""
        low, high = np.quantile(self.ratios, (0.25, 0.75))
        return float(low), float(high)


def compare(
    base: Callable[[], object],
    other: Callable[[], object],
    *,
    rounds: int = 10,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    max_seconds: float | None = None,
    report: Callable[[float], None] | None = None,
) -> Comparison:
    """Time two functions in pairs: A B, B A, A B ...

    Args:
        base: the first of every pair.
        other: the second.
        rounds: pairs that count.
        warmup: pairs that run before and do not count.
        device: where the work happens; the clock waits until a GPU has finished.
        max_seconds: begin no further pair after this time, once three are there.
        report: called after every pair with the share that is done.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: at least one pair must be timed.")
    device = torch.device(device)
    for _ in range(warmup):
        _seconds(base, device)
        _seconds(other, device)
    pairs: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(pairs) < rounds:
        if len(pairs) % 2 == 0:
            pairs.append((_seconds(base, device), _seconds(other, device)))
        else:
            after = _seconds(other, device)
            pairs.append((_seconds(base, device), after))
        if report is not None:
            report(len(pairs) / rounds)
        if max_seconds is not None and len(pairs) >= 3 and time.perf_counter() - started > max_seconds:
            break
    first, second = zip(*pairs, strict=True)
    return Comparison(Timing(first), Timing(second))


def repeat(
    function: Callable[[], object], *, rounds: int = 10, warmup: int = 1, device: torch.device | str = "cpu"
) -> Timing:
    """Time one function alone: its seconds hold for this moment of this machine."""
    device = torch.device(device)
    seconds = [_seconds(function, device) for _ in range(warmup + rounds)]
    return Timing(tuple(seconds[warmup:]))


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    wait(device)
    started = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Return when a GPU has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
