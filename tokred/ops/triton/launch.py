"""What all kernels share: how they become operators of PyTorch, and the sizes of their tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, triton_op
from torch.library import wrap_triton as _wrap_triton
from torch.utils.flop_counter import register_flop_formula

from tokred.ops.dispatch import is_interpreted

# fixed when the kernels are made, as for Triton itself
INTERPRETED = is_interpreted()


def operator(name: str, fake: Callable[..., Any], flops: Callable[..., int]) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: register a function that launches kernels as the operator ``tokred::name``.

    Args:
        name: of the operator.
        fake: what it returns, without values.
        flops: floating point operations, from the shapes of the arguments.
    """
    # the interpreter runs Python, which nothing can trace into
    define = custom_op if INTERPRETED else triton_op

    def decorate(function: Callable[..., Any]) -> Any:
        made = define(f"tokred::{name}", function, mutates_args=())
        made.register_fake(fake)
        register_flop_formula(getattr(torch.ops.tokred, name))(flops)
        return made

    return decorate


def wrap_triton(kernel: Any) -> Any:
    """A kernel that ``torch.compile`` can trace; in the interpreter, the kernel."""
    return kernel if INTERPRETED else _wrap_triton(kernel)


def empty_rounded(like: Tensor, *shape: int) -> Tensor:
    """Room for a result that is rounded to the data type of ``like``; by torch where the interpreter cuts it off."""
    rounded = torch.float32 if INTERPRETED else like.dtype
    return torch.empty(shape, device=like.device, dtype=rounded)


def differentiate_as(made: Any, plain: Callable[..., Any]) -> None:
    """Give an operator the gradients of a plain function of the same arguments, which runs again for them."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*[value for value in inputs if isinstance(value, Tensor)])

    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        inputs = [
            next(saved) if is_tensor else other for is_tensor, other in zip(ctx.is_tensor, ctx.others, strict=True)
        ]
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad) if needed]
        for index in wanted:
            inputs[index] = inputs[index].detach().requires_grad_()
        with torch.enable_grad():
            found = plain(*inputs)
        outputs = found if isinstance(found, tuple) else (found,)
        pairs = [(y, g) for y, g in zip(outputs, gradients, strict=True) if g is not None and y.requires_grad]
        results: list[Tensor | None] = [None] * len(inputs)
        if pairs and wanted:
            ys, gs = zip(*pairs, strict=True)
            grads = torch.autograd.grad(ys, [inputs[index] for index in wanted], gs, allow_unused=True)
            for index, grad in zip(wanted, grads, strict=True):
                results[index] = grad
        return tuple(results)

    made.register_autograd(backward, setup_context=setup)


def tiles(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Rows, columns and depth of a tile of products, with warps and stages.

    A small static table, set from the sizes of registers and shared memory: two stages must fit the 99 KB that every
    GPU since compute capability 8.0 has. ``python -m tokred.bench.gpu --tune`` times others.
    """
    depth = max(16, min(128, next_power_of_2(width)))
    if INTERPRETED:
        block = (32, 32, 1)
    elif dtype == torch.float32:
        block = (64, 32, 4) if depth > 64 else (64, 64, 4)
    else:
        block = (128, 64, 8) if depth > 64 else (128, 64, 4)
    found = {"BLOCK_M": block[0], "BLOCK_N": block[1], "num_warps": block[2], "BLOCK_D": depth, "num_stages": 2}
    return {**found, **_other_tiles}


@contextmanager
def other_tiles(**sizes: int) -> Iterator[None]:
    """Launch with other tiles inside the block, to compare them."""
    _other_tiles.update(sizes)
    try:
        yield
    finally:
        _other_tiles.clear()


_other_tiles: dict[str, int] = {}


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n``; 1 for 0."""
    return 1 << max(n - 1, 0).bit_length()


def strides(x: Tensor | None, dims: int) -> tuple[int, ...]:
    """The strides of ``x``, zeros where a dimension has one element only or there is no tensor."""
    if x is None:
        return (0,) * dims
    return tuple(0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True))
