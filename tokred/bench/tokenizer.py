"""What a tokenizer's encoding and decoding cost beside its bare transformer blocks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from tokred.bench.machine import device_name, require_device, threads, versions
from tokred.bench.timing import Comparison, compare
from tokred.tokenizer_assets import load_tokenizer
from tokred.tokenizers.base import Tokenizer
from tokred.tokenizers.flextok.blocks import Block, ModulatedBlock


@dataclass(frozen=True)
class TokenizerBench:
    """What is timed.

    Attributes:
        tokenizer: a shipped one, or a folder.
        batch_size: pictures a batch; noise, which changes nothing about the time.
        num_threads: CPU threads.
        rounds: timed pairs.
        device: where.
        dtype: float32, bfloat16 or float16.
    """

    tokenizer: str
    batch_size: int = 64
    num_threads: int = 2
    rounds: int = 20
    device: str = "cpu"
    dtype: str = "float32"


def bench_tokenizer(bench: TokenizerBench) -> dict[str, Any]:
    """Time encoding and decoding all tokens beside the blocks alone; return a record that JSON can hold.

    ``over_blocks`` is the median over pairs of the seconds of the whole by those of its blocks.
    """
    device = require_device(bench.device)
    model = load_tokenizer(bench.tokenizer).to(device, getattr(torch, bench.dtype))
    chance = torch.Generator().manual_seed(0)
    shape = (bench.batch_size, model.channels, model.side, model.side)
    images = torch.rand(shape, generator=chance).to(device) * 2 - 1
    with threads(bench.num_threads) as number, torch.inference_mode():
        codes = model.encode(images)
        found = {
            "encode": _beside_its_blocks(model, lambda: model.encode(images), bench),
            "decode": _beside_its_blocks(model, lambda: model.decode(codes), bench),
        }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "threads": number,
        "versions": versions(),
        "tokenizer": bench.tokenizer,
        "batch_size": bench.batch_size,
        "dtype": bench.dtype,
        "rounds": bench.rounds,
        **{name: _entry(pairs, bench.batch_size) for name, pairs in found.items()},
    }


def _beside_its_blocks(model: Tokenizer, whole: Callable[[], object], bench: TokenizerBench) -> Comparison:
    calls = _calls_of_blocks(model, whole)

    def bare() -> None:
        for block, args, kwargs in calls:
            block(*args, **kwargs)

    return compare(whole, bare, rounds=bench.rounds, device=bench.device)


def _calls_of_blocks(model: Tokenizer, run: Callable[[], object]) -> list[tuple[nn.Module, Any, Any]]:
    """Every call of a transformer block while something runs, with its arguments."""
    calls: list[tuple[nn.Module, Any, Any]] = []
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, (Block, ModulatedBlock)):
                note = module.register_forward_pre_hook(lambda *call: calls.append(call), with_kwargs=True)
                hooks.callback(note.remove)
        run()
    return calls


def _entry(pairs: Comparison, batch: int) -> dict[str, float]:
    low, high = pairs.quartiles
    return {
        "over_blocks": pairs.ratio,
        "low": low,
        "high": high,
        "seconds": pairs.base.median,
        "images_per_second": batch / pairs.base.median,
    }
