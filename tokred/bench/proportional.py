"""``python -m tokred.bench.proportional --out FILE``: what sizes cost in attention, beside attention without them.

It has the numbers behind the table :data:`tokred.ops.proportional.CHOICE` on devices without Triton; on a GPU
:mod:`tokred.bench.gpu` times the kernel, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from tokred.bench.machine import device_name, require_device, threads, versions
from tokred.bench.models import save
from tokred.bench.timing import Comparison, compare
from tokred.ops.proportional import Way, proportional_attention

WAYS: tuple[Way, ...] = ("mask", "keys", "values")
TOKENS = (99, 197, 577, 1025, 4096)
HEADS, WIDTH, ROWS = 6, 64, 8192  # of a ViT-S; as many rows in all, whatever the number of tokens


def bench_proportional(
    tokens: Sequence[int] = TOKENS, *, rounds: int = 15, device: str = "cpu", num_threads: int = 2
) -> dict[str, Any]:
    """Return a record that JSON can hold: the time over that without sizes, for types, numbers of tokens and ways.

    FlexAttention is left out: without a compiler it writes all scores in float32.
    """
    require_device(device)
    rows = []
    with threads(num_threads) as number, torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for count in tokens:
                rows += [_row(dtype, count, way, _time(dtype, count, way, rounds, device)) for way in WAYS]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(torch.device(device)),
        "threads": number,
        "versions": versions(),
        "heads": HEADS,
        "width": WIDTH,
        "rounds": rounds,
        "results": rows,
    }


def _time(dtype: torch.dtype, tokens: int, way: Way, rounds: int, device: str) -> Comparison:
    chance = torch.Generator().manual_seed(0)
    shape = (max(1, ROWS // tokens), HEADS, tokens, WIDTH)
    q, k, v = (torch.randn(shape, generator=chance).to(device, dtype) for _ in range(3))
    bias = torch.randint(1, 9, (shape[0], tokens), generator=chance).to(device).float().log()
    without = partial(F.scaled_dot_product_attention, q, k, v)
    return compare(partial(proportional_attention, q, k, v, bias, way=way), without, rounds=rounds, device=device)


def _row(dtype: torch.dtype, tokens: int, way: Way, pairs: Comparison) -> dict[str, Any]:
    low, high = pairs.quartiles
    name = str(dtype).removeprefix("torch.")
    return {"dtype": name, "tokens": tokens, "way": way, "over_plain": pairs.ratio, "low": low, "high": high}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    record = bench_proportional(rounds=given.rounds, device=given.device, num_threads=given.threads)
    sys.stdout.write(f"{save(record, given.out, page=None)[0]}\n")
