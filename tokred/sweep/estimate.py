"""About how long a sweep will take on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import torch

from tokred.bench.machine import require_device, threads
from tokred.bench.timing import compare
from tokred.cost import Cost
from tokred.errors import ConfigError, DataError
from tokred.sweep.kinds import Outlook, kind_of
from tokred.sweep.point import Point
from tokred.sweep.spec import SweepSpec

_WIDTH, _TOKENS, _BATCH = 384, 197, 8  # of the block that the speed is measured with: that of a ViT-S/16
_PAIRS_BESIDE = 2  # the one that warms up, and what memory is measured with


def estimate_seconds(spec: SweepSpec, planned: Sequence[tuple[Point, Outlook]]) -> list[float | None]:
    """Seconds for every point of a preview; ``None`` where its cost or its data are not known.

    A block of a vision transformer is timed; all MACs are taken to run at its speed, and images to be there in time.
    """
    try:
        with threads(spec.threads):
            rate = _macs_per_second(spec.device, spec.dtype)
    except ConfigError:  # planned for another machine
        return [None] * len(planned)
    count_of = cache(partial(_count, spec))
    whole = {point.model: cost.macs for point, cost in planned if point.method is None and isinstance(cost, Cost)}
    seconds: list[float | None] = []
    for point, cost in planned:
        if not isinstance(cost, Cost) or (count := count_of(point.data)) is None:
            seconds.append(None)
            continue
        batch = min(spec.batch_size, count)
        timed = batch * (spec.rounds + _PAIRS_BESIDE) * (cost.macs + whole[point.model])
        seconds.append((count * cost.macs + timed) / rate)
    return seconds


@cache
def _macs_per_second(device: str, dtype: str) -> float:
    from timm.models.vision_transformer import Block

    place = {"device": require_device(device), "dtype": getattr(torch, dtype)}
    block, x = Block(_WIDTH, num_heads=6).eval().to(**place), torch.randn(_BATCH, _TOKENS, _WIDTH, **place)
    with torch.inference_mode():
        timing = compare(lambda: block(x), lambda: block(x), rounds=3, device=device).base
    macs = _BATCH * (12 * _TOKENS * _WIDTH**2 + 2 * _TOKENS**2 * _WIDTH)
    return macs / timing.median


def _count(spec: SweepSpec, data: str) -> int | None:
    """How many images would be read."""
    try:
        total = len(kind_of(spec.models).load_data(data, spec.split))
    except DataError:
        return None
    return min(spec.images or total, total)
