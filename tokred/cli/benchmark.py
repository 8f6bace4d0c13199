"""``tokred benchmark``: inference speed with the arguments of timm's ``benchmark.py``, with a method or without."""

from __future__ import annotations

import argparse
import copy
from functools import partial
from typing import Any

import torch
import typer

from tokred.adapters import find_tower
from tokred.bench.memory import is_out_of_memory
from tokred.bench.timing import compare, repeat
from tokred.cli.timm_arguments import DTYPES, Parser, compiled, give, method_of, millions, precision, prepare
from tokred.cost import cost
from tokred.errors import ConfigError, UnsupportedModelError
from tokred.methods import Method
from tokred.patching import patch, unwrap


def benchmark(context: typer.Context) -> None:
    """Speed of a model with a method in it; takes the arguments of timm's benchmark.py (--help lists them)."""
    parser = _parser()
    arguments = parser.read(context.args)
    if arguments.bench != "infer":
        parser.error(f"--bench {arguments.bench}: only inference is measured. Use --bench infer.")
    try:
        give(arguments, run(arguments))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        size = arguments.batch_size
        raise ConfigError(f"Batches of {size} do not fit into memory. Try -b {max(size // 2, 1)}.") from error


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time inference; return what timm's script would, with medians for means, and the speed-up of the method."""
    name = arguments.precision
    arguments.amp |= name.startswith("amp")
    if name == "amp_bfloat16":
        arguments.amp_dtype = "bfloat16"
    model, data, method, device = prepare(arguments)
    model = model.to(device, getattr(torch, name) if name in DTYPES else torch.float32).eval()
    dtype = next(model.parameters()).dtype
    images = torch.randn(arguments.batch_size, *data["input_size"]).to(device, dtype)
    if arguments.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    plain, speed = compiled(arguments, model), {}
    rounds, warmup = arguments.num_bench_iter, arguments.num_warm_iter
    with precision(arguments, device), torch.inference_mode():
        if method is None:
            timing = repeat(partial(plain, images), rounds=rounds, warmup=warmup, device=device)
        else:
            patched = patch(copy.deepcopy(model), method).model
            both = partial(plain, images), partial(compiled(arguments, patched), images)
            pairs = compare(*both, rounds=rounds, warmup=warmup, device=device)
            timing = pairs.other
            low, high = pairs.quartiles
            speed = {
                **method_of(arguments),
                "speedup": round(pairs.ratio, 3),
                "speedup_low": round(low, 3),
                "speedup_high": round(high, 3),
                "unpatched_samples_per_sec": round(arguments.batch_size / pairs.base.median, 2),
            }
    return {
        "model": arguments.model,
        "infer_samples_per_sec": round(arguments.batch_size / timing.median, 2),
        "infer_step_time": round(1e3 * timing.median, 3),
        "infer_batch_size": arguments.batch_size,
        "infer_img_size": data["input_size"][-1],
        **_gmacs(model, method),
        "param_count": millions(model),
        **speed,
    }


def _gmacs(model: torch.nn.Module, method: Method | None) -> dict[str, float]:
    """For one image; left out for models that tokred does not know the inside of."""
    try:
        shape = find_tower(unwrap(model)).shape
    except UnsupportedModelError:
        return {}
    return {"infer_gmacs": round((cost(shape) if method is None else method.cost(shape)).gmacs, 2)}


def _parser() -> Parser:
    parser = Parser("benchmark", "Speed of a model on random images, with a method or without, as timm's benchmark.py.")
    add = parser.add_argument
    add("--bench", default="infer", help="infer is all that is measured")
    add("--num-warm-iter", type=int, default=10)
    add("--num-bench-iter", type=int, default=40)
    add("--precision", default="float32", choices=(*DTYPES, "amp", "amp_bfloat16"))
    add("--no-retry", action="store_true", help="taken; a batch that does not fit is never tried smaller")
    return parser
