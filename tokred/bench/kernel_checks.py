"""Whether the kernels do what plain PyTorch does: the same checks on a GPU and, on the CPU, in Triton's interpreter.

Indices must be equal. Values may be at most twice as far from float64 as plain PyTorch in the same data type is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokred import ops
from tokred.ops.dispatch import DTYPES, kernel, without_kernel

_FLOOR = 2e-6  # of the largest value: plain PyTorch may be exact by chance
_SMALL = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: operator and case.
        run: raises AssertionError on a device whose kernel is wrong.
    """

    name: str
    run: Callable[[torch.device], None]


def all_checks() -> list[Check]:
    """Every check, in the order of the operators."""
    parts = (_matching, _bipartite, _merging, _gradients_of_merging, _energies, _rows, _received, _choosing, _biased)
    return [Check(name, run) for part in parts for name, run in part()]


Cases = Iterator[tuple[str, Callable[[torch.device], None]]]


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Tensor:
    """The same numbers on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def _both(name: str, *arguments: Any, **keywords: Any) -> None:
    """Run the kernel, the plain function, and the plain function in float64, and compare."""
    plain = without_kernel(getattr(ops, name))
    found = kernel(name)(*arguments, **keywords)
    wanted = plain(*arguments, **keywords)
    exact = plain(*map(_double, arguments), **{key: _double(value) for key, value in keywords.items()})
    for part, (a, b, c) in enumerate(zip(*map(_parts, (found, wanted, exact)), strict=True)):
        compare(a, b, c, f"{name}[{part}]")


def compare(found: Tensor, wanted: Tensor, exact: Tensor, what: str) -> None:
    """Compare a result with the plain one and the exact one.

    Raises:
        AssertionError: they differ by more than the rule allows.
    """
    assert found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)} instead of {tuple(wanted.shape)}"
    assert found.dtype == wanted.dtype, f"{what}: {found.dtype} instead of {wanted.dtype}"
    if not found.is_floating_point():
        wrong = (found != wanted).nonzero()
        assert not len(wrong), f"{what}: {len(wrong)} of {wanted.numel()} differ, the first at {wrong[0].tolist()}"
        return
    for special in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(special(found), special(wanted)), f"{what}: {special.__name__} elsewhere"
    finite = wanted.isfinite()
    if not finite.any():
        return
    exact = exact[finite].double()
    error, allowed = ((x[finite].double() - exact).abs().max() for x in (found, wanted))
    floor = _FLOOR * exact.abs().max().clamp(min=1e-3)
    assert error <= 2 * allowed + floor, f"{what}: error {float(error):.2e}, plain PyTorch {float(allowed):.2e}"


def _parts(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _difficult(kind: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """[2, 35, D] tokens that invite mistakes."""
    x = _random(2, 35, 20, seed=3, device=device, dtype=dtype)
    if kind == "all equal":
        return x[:, :1].expand(-1, 35, -1)
    if kind == "planted ties":  # of length 4, so that cosines are exact multiples of 1/16, and most of them are ties
        x = x[:, :, :16].sign()
        x[:, 9:12] = 2 * x[:, 4:7]
    if kind == "zero vectors":
        x[:, 3:9] = 0
    if kind == "infinities":
        x[0, 6, 2], x[1, 30, 0], x[1, 1, 1] = torch.inf, -torch.inf, torch.nan
    if kind == "large numbers":
        x[0, 4] *= 1e20
    if kind == "strides":
        return _random(20, 70, 2, seed=3, device=device, dtype=dtype).permute(2, 1, 0)[:, ::2]
    return x


_DIFFICULT = ("all equal", "planted ties", "zero vectors", "infinities", "large numbers", "strides")


def _matching() -> Cases:
    def shape(sizes: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        batch, sources, targets, width = sizes
        a = _random(batch, sources, width, dtype=dtype, device=device)
        b = _random(batch, targets, width, seed=1, dtype=dtype, device=device)
        _both("best_match", a, b)

    def difficult(kind: str, device: torch.device) -> None:
        x = _difficult(kind, device)
        _both("best_match", x[:, 0::2], x[:, 1::2])
        _both("nearest_distance", x)

    def masked(device: torch.device) -> None:
        x = _random(2, 37, 24, device=device)
        allowed = _random(2, 37, 37, seed=2, device=device) > 0
        allowed[1, 5] = False
        _both("best_match", x, x, allowed)
        _both("best_match", x, x, allowed[:, :1].expand(-1, 37, -1))
        _both("nearest_distance", x, allowed[:, 0])

    shapes = ((1, 1, 1, 16), (2, 33, 65, 24), (1, 70, 31, 130), (3, 17, 5, 5))
    for sizes, dtype in itertools.product(shapes, _SMALL):
        yield f"best_match {sizes} {_name(dtype)}", partial(shape, sizes, dtype)
    yield "best_match (2, 40, 40, 72) float16", partial(shape, (2, 40, 40, 72), torch.float16)
    for kind in _DIFFICULT:
        yield f"best_match {kind}", partial(difficult, kind)
    yield "best_match masked", masked


def _bipartite() -> Cases:
    def shape(tokens: int, prefix: int, dtype: torch.dtype, device: torch.device) -> None:
        x = _random(2, tokens, 24, dtype=dtype, device=device)
        valid = _random(2, tokens, seed=5, device=device) > -1
        valid[:, :prefix] = True
        for removed in {0, (tokens - prefix) // 4, (tokens - prefix) // 2}:
            _both("bipartite_match", x, removed, prefix)
        _both("bipartite_match", x, (tokens - prefix) // 4, prefix, valid)

    def difficult(kind: str, device: torch.device) -> None:
        x = _difficult(kind, device)
        _both("bipartite_match", x, 9, 0)
        _both("bipartite_match", x, 9, 1)

    def several_launches(device: torch.device) -> None:
        _both("bipartite_match", _random(1, 1027, 8, device=device), 100, 1)

    for tokens, prefix in ((2, 0), (41, 0), (50, 1), (39, 2), (66, 5)):
        dtype = DTYPES[tokens % 3]
        yield f"bipartite_match {tokens} tokens, prefix {prefix}, {_name(dtype)}", partial(shape, tokens, prefix, dtype)
    for kind in _DIFFICULT:
        yield f"bipartite_match {kind}", partial(difficult, kind)
    yield "bipartite_match 1027 tokens, in several launches", several_launches


def _entries(device: torch.device, tokens: int = 29, others: int = 11) -> tuple[Tensor, ...]:
    """A map with crowded, empty and dropped places."""
    order = torch.rand(2, tokens, generator=torch.Generator().manual_seed(7)).argsort(dim=1).to(device)
    into = torch.randint(0, 4, (2, others), generator=torch.Generator().manual_seed(8)).to(device)
    into[0, 3], into[1, 5] = -1, tokens - others - 1
    return order[:, others:], order[:, :others], into


def _merging() -> Cases:
    def plainly(dtype: torch.dtype, mean: bool, device: torch.device) -> None:
        kept, moved, into = _entries(device)
        x = _random(2, 29, 70, dtype=dtype, device=device)
        size = torch.randint(1, 400, (2, 29), generator=torch.Generator().manual_seed(1)).float().to(device)
        _both("merge", x, None, kept, moved, into, mean=mean)
        _both("merge", x, size, kept, moved, into, mean=mean)

    def with_everything(device: torch.device) -> None:
        kept, moved, into = _entries(device)
        x = _random(29, 2, 3, 5, device=device).transpose(0, 1)
        weight = _random(2, 29, seed=2, device=device).abs()
        factor = _random(2, 29, seed=3, device=device)
        valid = _random(2, 18, seed=4, device=device) > 0
        size = _random(2, 29, seed=5, device=device).abs()
        _both("merge", x, size, kept, moved, into, weight, factor, valid)
        _both("merge_tokens", x, size, kept, moved, into, weight, False)
        _both("merge_tokens", x[..., 0, 0], None, kept, moved, into)

    def keeps_bits(device: torch.device) -> None:
        kept, moved, into = _entries(device)
        x = _difficult("infinities", device, torch.float16)[:, :29]
        y, sizes = kernel("merge")(x, None, kept, moved[:, :0], into[:, :0])
        same = torch.equal(y.nan_to_num(7), x.gather(1, kept.unsqueeze(2).expand(-1, -1, 20)).nan_to_num(7))
        assert same, "tokens that nobody joins must keep every bit"
        assert (sizes == 1).all()
        shared = kept[:1].expand(2, -1)
        _both("merge", x, None, shared, moved, into)
        again = [kernel("merge")(x, None, kept, moved, into)[0].nan_to_num(7) for _ in range(2)]
        assert torch.equal(*again), "two runs must agree"

    for dtype, mean in itertools.product(_SMALL, (True, False)):
        yield f"merge {_name(dtype)} {'mean' if mean else 'sum'}", partial(plainly, dtype, mean)
    yield "merge with weights, factors, padding, strides", with_everything
    yield "merge keeps bits", keeps_bits


def _gradients_of_merging() -> Cases:
    def gradients(dtype: torch.dtype, mean: bool, device: torch.device) -> None:
        kept, moved, into = _entries(device)
        moved = moved.clone()
        moved[:, 1] = moved[:, 0]  # one token in two places
        size = _random(2, 29, seed=2, device=device).abs() + 0.5
        x, dy = _random(2, 29, 20, dtype=dtype, device=device), _random(2, 18, 20, seed=1, dtype=dtype, device=device)

        def gradient(run: Callable[..., Any], x: Tensor, size: Tensor, dy: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(run(x, size, kept, moved, into, mean=mean)[0], x, dy)[0]

        plain = without_kernel(ops.merge)
        exact = gradient(plain, x.double(), size.double(), dy.double())
        compare(gradient(kernel("merge"), x, size, dy), gradient(plain, x, size, dy), exact, "gradient of merge")

    for dtype, mean in ((torch.float32, True), (torch.float32, False), (torch.bfloat16, True)):
        yield f"gradient of merge {_name(dtype)} {'mean' if mean else 'sum'}", partial(gradients, dtype, mean)


def _energies() -> Cases:
    def energies(dtype: torch.dtype, device: torch.device) -> None:
        x = _random(2, 37, 72, dtype=dtype, device=device)
        valid = _random(2, 37, seed=5, device=device) > -1
        _both("energy", x, 0.05)
        _both("energy", x, 0.3, 0.7, True, valid)
        _both("gaussian_energy", x, 0.3, valid)
        _both("density", x[..., :9], 5, valid)

    def difficult(kind: str, device: torch.device) -> None:
        x = _difficult(kind, device)
        _both("energy", x, 0.4)
        if kind not in ("large numbers", "infinities"):
            _both("density", x, 3)

    def alone(device: torch.device) -> None:
        x = _random(1, 1, 16, device=device)
        _both("energy", x, 0.5)
        _both("density", x)
        _both("nearest_distance", x)

    for dtype in _SMALL:
        yield f"energy, density {_name(dtype)}", partial(energies, dtype)
    for kind in _DIFFICULT:
        yield f"energy, density {kind}", partial(difficult, kind)
    yield "energy, density of one token", alone


def _biases(device: torch.device, tokens: int) -> dict[str, Tensor | None]:
    full = _random(1, 4, tokens, tokens, seed=9, device=device)
    mask = _random(2, 1, 1, tokens, seed=9, device=device) > -0.5
    nobody = mask.expand(2, 4, tokens, tokens).clone()
    nobody[1, 2, 3] = False
    return {"no bias": None, "bias": full, "mask": mask, "keys": full[:, :1, :1], "nobody": nobody}


def _queries(device: torch.device, dtype: torch.dtype, tokens: int, width: int, groups: int) -> tuple[Tensor, Tensor]:
    q = _random(2, tokens, 4, width, dtype=dtype, device=device).transpose(1, 2)
    return q, _random(2, groups, tokens, width, seed=1, dtype=dtype, device=device)


def _rows() -> Cases:
    def row(kind: str, dtype: torch.dtype, width: int, groups: int, device: torch.device) -> None:
        q, k = _queries(device, dtype, 43, width, groups)
        for index in (0, 3, -1):
            _both("attention_row", q, k, 0.3, index, _biases(device, 43)[kind])

    kinds = ("no bias", "bias", "mask", "keys", "nobody")
    for kind, width, groups in zip(kinds, (20, 64, 16, 80, 20), (4, 1, 2, 4, 4), strict=True):
        dtype = DTYPES[width % 3]
        yield f"attention_row {kind}, width {width}, {_name(dtype)}", partial(row, kind, dtype, width, groups)


def _received() -> Cases:
    def received(kind: str, dtype: torch.dtype, width: int, groups: int, device: torch.device) -> None:
        q, k = _queries(device, dtype, 43, width, groups)
        weight = _random(2, 4, 43, seed=4, device=device).abs()
        _both("attention_received", q, k, 0.3, weight, _biases(device, 43)[kind])
        _both("attention_received", q, k, 0.3, weight[:1, :1].expand(2, 4, -1), _biases(device, 43)[kind])

    kinds = ("no bias", "bias", "mask", "keys", "nobody")
    for kind, width, groups in zip(kinds, (20, 64, 16, 80, 20), (4, 1, 2, 4, 4), strict=True):
        dtype = DTYPES[width % 3]
        yield f"attention_received {kind}, width {width}, {_name(dtype)}", partial(received, kind, dtype, width, groups)


def _choosing() -> Cases:
    def choosing(kind: str, device: torch.device) -> None:
        x = _difficult(kind, device) if kind != "random" else _random(2, 45, 24, device=device)
        first = torch.tensor([4, 0], device=device)
        weight = _random(2, x.shape[1], seed=5, device=device).abs()
        allowed = _random(2, x.shape[1], seed=6, device=device) > 0.5
        allowed[torch.arange(2, device=device), first] = True
        _both("farthest", x, 12, first)
        _both("farthest", x, 12, first, weight)
        _both("farthest", x, 33, first, weight, allowed)

    for kind in ("random", "all equal", "planted ties", "zero vectors", "strides"):
        yield f"farthest {kind}", partial(choosing, kind)


def _biased() -> Cases:
    def attention(dtype: torch.dtype, width: int, groups: int, device: torch.device) -> None:
        q, k = _queries(device, dtype, 43, width, groups)
        v = _random(2, groups, 43, width, seed=2, dtype=dtype, device=device)
        sizes = torch.randint(1, 200, (2, 43), generator=torch.Generator().manual_seed(3)).float()
        bias = sizes.log().to(device)
        bias[1, 7:11] = -torch.inf
        _both("key_biased_attention", q[:, :, :30], k, v, bias)

    for dtype, width, groups in ((torch.float32, 20, 4), (torch.bfloat16, 64, 2), (torch.float16, 80, 1)):
        yield f"key_biased_attention {_name(dtype)}, width {width}", partial(attention, dtype, width, groups)
