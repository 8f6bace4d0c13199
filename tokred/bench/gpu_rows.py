"""What :mod:`tokred.bench.gpu` times: kernels at the sizes of real models, ways to proportional attention, models."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokred import ops
from tokred.bench.gpu_timing import graphed
from tokred.ops.dispatch import VARIABLE, kernel, without_kernel

Ways = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """One thing that is done in several ways.

    Attributes:
        name: of the row; unique.
        make: the ways on a device, the one that others are compared with first.
        kernels: operators that it times, which must be right.
        flops: of its products.
        bytes: that must be read or written at least.
        dtype: of its products.
    """

    name: str
    make: Callable[[torch.device], Ways]
    kernels: frozenset[str] = frozenset()
    flops: float = 0.0
    bytes: float = 0.0
    dtype: str = "bfloat16"


def rows(dry: bool) -> Iterator[Row]:
    """All rows; tiny ones for a dry run."""
    yield from _layers(dry)
    yield from _operators(dry)
    yield from _attentions(dry)
    yield from _models(dry)


def _compiled(function: Callable[..., object], *arguments: Any) -> Callable[[], object]:
    """Under torch.compile; a dry run traces only."""
    torch.compiler.reset()
    made = torch.compile(function, backend="inductor" if torch.cuda.is_available() else "eager")
    return lambda: made(*arguments)


def _ways(name: str, *arguments: Any) -> Ways:
    plain, fused = without_kernel(getattr(ops, name)), kernel(name)
    return {
        "eager": lambda: plain(*arguments),
        "compiled": _compiled(plain, *arguments),
        "kernel": lambda: fused(*arguments),
    }


def _layers(dry: bool) -> Iterator[Row]:
    """Match, select and merge: what ToMe adds to a block."""
    sizes = ((256, 197, 64, 1024, 8), (128, 197, 64, 768, 16), (1, 197, 64, 1024, 8), (8, 577, 64, 1024, 23))
    sizes += ((4, 1024, 64, 1024, 64), (1, 4096, 64, 1024, 256), (1, 16384, 64, 1024, 1024))
    if dry:
        sizes = ((2, 17, 16, 24, 3),)
    for batch, tokens, width, channels, r in sizes:
        element = 2
        moved = element * batch * (tokens * width + (2 * tokens - r) * channels)
        yield Row(
            f"match, select, merge: B {batch}, N {tokens}, D {width}, C {channels}, r {r}, bfloat16",
            partial(_layer, batch, tokens, width, channels, r),
            frozenset({"bipartite_match", "best_match", "merge"}),
            2.0 * batch * (tokens // 2) ** 2 * width,
            moved,
        )


def _layer(batch: int, tokens: int, width: int, channels: int, r: int, device: torch.device) -> Ways:
    keys = torch.randn(batch, tokens, width, device=device, dtype=torch.bfloat16)
    x = torch.randn(batch, tokens, channels, device=device, dtype=torch.bfloat16)
    size = torch.ones(batch, tokens, device=device)

    def plainly(keys: Tensor, x: Tensor, size: Tensor) -> object:
        kept, moved, into = without_kernel(ops.bipartite_match)(keys, r, 1)
        return without_kernel(ops.merge)(x, size, kept, moved, into)

    def fused() -> object:  # as a patched model calls it
        kept, moved, into = ops.bipartite_match(keys, r, 1)
        return ops.merge(x, size, kept, moved, into)

    def eager() -> object:
        with kernels("off"):
            return plainly(keys, x, size)

    traced = _compiled(plainly, keys, x, size)

    def compiled() -> object:
        with kernels("off"):
            return traced()

    return {"eager": eager, "compiled": compiled, "kernels": fused, "kernels, CUDA graph": graphed(fused, device)}


def _operators(dry: bool) -> Iterator[Row]:
    """Each kernel by itself."""
    shapes = ((1, 20, 16),) if dry else ((256, 98, 64), (8, 512, 64), (1, 2048, 64), (1, 8192, 64), (8, 288, 1024))
    for batch, half, width in shapes:
        yield Row(
            f"best_match: B {batch}, {half} x {half}, D {width}, bfloat16",
            partial(_pairs, "best_match", batch, half, width, ()),
            frozenset({"best_match"}),
            2.0 * batch * half * half * width,
            2.0 * 2 * batch * half * width,
        )
    for batch, tokens, width in ((1, 20, 16),) if dry else ((128, 196, 64), (8, 1024, 64), (1, 4096, 64)):
        pairs = 2.0 * batch * tokens * tokens * width
        for name, arguments in (("energy", (0.9,)), ("gaussian_energy", (0.5,)), ("density", (5,))):
            yield Row(
                f"{name}: B {batch}, N {tokens}, D {width}, bfloat16",
                partial(_one, name, batch, tokens, width, arguments),
                frozenset({name}),
                0.0 if name == "density" else pairs,
                2.0 * batch * tokens * width,
            )
    for batch, tokens, width, count in ((1, 20, 16, 4),) if dry else ((1, 576, 1024, 64), (8, 576, 1024, 128)):
        yield Row(
            f"farthest: B {batch}, N {tokens}, D {width}, {count} chosen, bfloat16",
            partial(_chosen, batch, tokens, width, count),
            frozenset({"farthest"}),
        )
    for batch, heads, tokens, width in ((1, 2, 20, 16),) if dry else ((64, 16, 577, 64), (1, 16, 4096, 64)):
        for name in ("attention_row", "attention_received"):
            received = name == "attention_received"
            yield Row(
                f"{name}: B {batch}, H {heads}, N {tokens}, D {width}, bfloat16",
                partial(_seen, name, batch, heads, tokens, width),
                frozenset({name}),
                (4.0 if received else 0.0) * batch * heads * tokens * tokens * width,
                2.0 * (2 if received else 1) * batch * heads * tokens * width,
            )


def _pairs(name: str, batch: int, half: int, width: int, rest: tuple[Any, ...], device: torch.device) -> Ways:
    a, b = (torch.randn(batch, half, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    return _ways(name, a, b, *rest)


def _one(name: str, batch: int, tokens: int, width: int, rest: tuple[Any, ...], device: torch.device) -> Ways:
    return _ways(name, torch.randn(batch, tokens, width, device=device, dtype=torch.bfloat16), *rest)


def _chosen(batch: int, tokens: int, width: int, count: int, device: torch.device) -> Ways:
    x = torch.randn(batch, tokens, width, device=device, dtype=torch.bfloat16)
    first = torch.zeros(batch, dtype=torch.int64, device=device)
    plain, fused = without_kernel(ops.farthest), kernel("farthest")
    return {"eager": lambda: plain(x, count, first), "kernel": lambda: fused(x, count, first)}


def _seen(name: str, batch: int, heads: int, tokens: int, width: int, device: torch.device) -> Ways:
    q, k = (torch.randn(batch, heads, tokens, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    if name == "attention_row":
        return _ways(name, q, k, width**-0.5)
    return _ways(name, q, k, width**-0.5, torch.rand(batch, heads, tokens, device=device))


def _attentions(dry: bool) -> Iterator[Row]:
    """Proportional attention beside attention without sizes."""
    heads, width = (2, 16) if dry else (16, 64)
    for tokens in (20,) if dry else (100, 197, 577, 1024, 4096):
        for dtype in ("bfloat16",) if dry else ("bfloat16", "float16", "float32"):
            batch = 1 if dry else max(1, 65536 // tokens // (4 if dtype == "float32" else 1))
            yield Row(
                f"proportional attention: B {batch}, H {heads}, N {tokens}, D {width}, {dtype}",
                partial(_attention, batch, heads, tokens, width, dtype),
                frozenset({"key_biased_attention"}),
                4.0 * batch * heads * tokens * tokens * width,
                0.0,
                dtype,
            )


def _attention(batch: int, heads: int, tokens: int, width: int, dtype: str, device: torch.device) -> Ways:
    from torch.nn.attention.flex_attention import flex_attention

    shape = (batch, heads, tokens, width)
    q, k, v = (torch.randn(shape, device=device, dtype=getattr(torch, dtype)) for _ in range(3))
    bias = torch.randint(1, 17, (batch, tokens), device=device).float().log()
    ways: Ways = {"no sizes": lambda: F.scaled_dot_product_attention(q, k, v)}
    for way in ("mask", "keys", "values"):
        ways[way] = partial(ops.proportional_attention, q, k, v, bias, way=way)
    fused = kernel("key_biased_attention")
    ways["kernel"] = lambda: fused(q, k, v, bias)
    if device.type == "cuda":
        torch.compiler.reset()
        flex: Any = torch.compile(flex_attention)
        ways["flex, compiled"] = lambda: flex(q, k, v, score_mod=lambda s, b, h, i, j: s + bias[b, j])
    return ways


def _models(dry: bool) -> Iterator[Row]:
    """Whole models, unpatched beside patched."""
    if dry:
        yield Row("tiny ViT, batch 1, r 4, float32", partial(_model, None, 1, 4, "float32", True))
        return
    for name, batch, r in (
        ("vit_large_patch16_224", 256, 8),
        ("vit_large_patch16_224", 256, 0),
        ("vit_base_patch16_224", 128, 8),
        ("vit_base_patch16_224", 128, 16),
        ("vit_base_patch16_224", 1, 8),
    ):
        yield Row(f"{name}, batch {batch}, r {r}, bfloat16", partial(_model, name, batch, r, "bfloat16", False))


def _model(name: str | None, batch: int, r: int, dtype: str, dry: bool, device: torch.device) -> Ways:
    import timm

    import tokred

    small: dict[str, Any] = (
        {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2} if dry else {}
    )
    torch.manual_seed(0)
    plain = timm.create_model(name or "vit_tiny_patch16_224", pretrained=False, **small)
    plain = plain.eval().to(device, getattr(torch, dtype))
    side = small.get("img_size", 224)
    images = torch.randn(batch, 3, side, side, device=device, dtype=getattr(torch, dtype))
    fused, without = _copy(plain), _copy(plain)
    for model in (fused, without):
        tokred.patch(model, tokred.ToMe(r=r))

    def run(model: Callable[..., object], mode: str) -> Callable[[], object]:
        def forward() -> object:
            with kernels(mode), torch.inference_mode():
                return model(images)

        return forward

    ways: Ways = {
        "unpatched": run(plain, "auto"),
        "patched, plain PyTorch": run(without, "off"),
        "patched, kernels": run(fused, "triton"),
    }
    if not dry:
        ways["unpatched, CUDA graph"] = graphed(run(plain, "auto"), device)
        ways["patched, kernels, CUDA graph"] = graphed(run(fused, "triton"), device)
        torch.compiler.reset()
        ways["unpatched, compiled"] = run(torch.compile(_copy(plain)), "auto")
        again = _copy(plain)
        tokred.patch(again, tokred.ToMe(r=r))
        ways["patched, compiled"] = run(torch.compile(again), "triton")
    return ways


def tuning(dry: bool) -> Iterator[Row]:
    """Other tiles for the kernels that multiply."""
    shapes = (("bfloat16", 64), ("bfloat16", 128), ("float32", 64))
    for dtype, width in (("float32", 16),) if dry else shapes:
        for name in ("best_match", "key_biased_attention"):
            yield Row(
                f"tiles of {name}: D {width}, {dtype}", partial(_tiles, name, dtype, width, dry), frozenset({name})
            )


def _tiles(name: str, dtype: str, width: int, dry: bool, device: torch.device) -> Ways:
    heads, tokens = (2, 20) if dry else (16, 2048)
    q, k, v = (torch.randn(1, heads, tokens, width, device=device, dtype=getattr(torch, dtype)) for _ in range(3))
    bias = torch.zeros(1, tokens, device=device)
    run = kernel(name)

    def launch(**sizes: int) -> Callable[[], object]:
        def once() -> object:
            from tokred.ops.triton.launch import other_tiles

            with other_tiles(**sizes):
                return run(q[0], k[0]) if name == "best_match" else run(q, k, v, bias)

        return once

    ways: Ways = {"table": launch()}
    grid = (
        itertools.product((32,), (16, 32), (1,), (1,))
        if dry
        else itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
    )
    for rows_, columns, warps, stages in grid:
        ways[f"{rows_} x {columns}, {warps} warps, {stages} stages"] = launch(
            BLOCK_M=rows_, BLOCK_N=columns, num_warps=warps, num_stages=stages
        )
    return ways


def _copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


@contextmanager
def kernels(mode: str) -> Iterator[None]:
    """Set ``TOKRED_KERNELS`` inside the block."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = mode
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
