"""Which of two ways an operator takes: the fused kernel, or the plain PyTorch that it must reproduce."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

VARIABLE = "TOKRED_KERNELS"
MODES = ("auto", "off", "triton")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CAPABILITY = (8, 0)
TRIED: frozenset[tuple[int, int]] = frozenset()
"""Compute capabilities on which ``tokred.bench.gpu`` found every kernel right; ``auto`` takes kernels there only."""
_LARGEST = 2**31 - 1
_HAS_TRITON = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Kernel:
    """What one kernel can do.

    Attributes:
        file: under ``tokred/ops/triton``.
        max_width: largest last dimension of its first tensor; beyond, registers and shared memory do not suffice.
        max_tokens: largest number of tokens; ``None``: any.
        max_pairs: largest number of pairs of tokens in the batch, where one value for each is held.
        alike: how many of its tensors must have one data type.
    """

    file: str
    max_width: int
    max_tokens: int | None = None
    max_pairs: int | None = None
    alike: int = 1


# The table of choice: on a GPU where kernels were tried, one is taken wherever it can run.
# The reasons stand in docs/design.md, "Kernels".
KERNELS = {
    "best_match": Kernel("match", 8192, alike=2),
    "bipartite_match": Kernel("match", 8192),
    "nearest_distance": Kernel("diverse", 8192),
    "merge": Kernel("merge", 65536),
    "merge_tokens": Kernel("merge", 65536),
    "energy": Kernel("energy", 8192),
    "gaussian_energy": Kernel("energy", 8192),
    "density": Kernel("energy", 8192),
    "attention_row": Kernel("attention_row", 256, alike=2),
    "attention_received": Kernel("attention_received", 256, alike=2),
    "farthest": Kernel("diverse", 8192, max_tokens=8192, max_pairs=2**28),
    "key_biased_attention": Kernel("attention_bias", 256, alike=3),
}

_failed: dict[tuple[str, torch.device], str] = {}
_loaded: dict[str, Callable[..., Any]] = {}
_capabilities: dict[torch.device, tuple[int, int]] = {}


def mode() -> str:
    """What the environment variable ``TOKRED_KERNELS`` asks for.

    Raises:
        ValueError: it holds no known word.
    """
    asked = os.environ.get(VARIABLE, "auto")
    if asked not in MODES:
        raise ValueError(f"{VARIABLE}={asked!r}: known are {', '.join(MODES)}.")
    return asked


def dispatched(plain: Callable[P, R]) -> Callable[P, R]:
    """Decorator for a plain operator: its kernel of the same name runs instead wherever :func:`refusal` allows it.

    ``without_kernel(operator)`` is the plain function.
    """
    name = plain.__name__

    @functools.wraps(plain)
    def choose(*args: P.args, **kwargs: P.kwargs) -> R:
        asked = mode()
        first = args[0] if args else next(iter(kwargs.values()))
        if asked == "off" or (asked == "auto" and isinstance(first, Tensor) and not first.is_cuda):
            return plain(*args, **kwargs)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        require_one_device(name, tensors)
        if refusal(name, tensors) is not None:
            return plain(*args, **kwargs)
        return _run(name, plain, args, kwargs)

    return choose


def without_kernel(operator: Callable[P, R]) -> Callable[P, R]:
    """The plain function behind a dispatched operator."""
    return getattr(operator, "__wrapped__", operator)


def kernel(name: str) -> Callable[..., Any]:
    """The operator that runs the kernel, without asking whether it can."""
    _load()
    return _loaded[name]


@torch.compiler.assume_constant_result
def _load() -> bool:
    """Import all kernels; torch.compile does not look inside, and finds them loaded."""
    if not _loaded:
        files = {rule.file: importlib.import_module(f"tokred.ops.triton.{rule.file}") for rule in KERNELS.values()}
        _loaded.update({name: getattr(files[rule.file], name) for name, rule in KERNELS.items()})
    return True


def refusal(name: str, tensors: list[Tensor]) -> str | None:
    """Why the plain function runs for these tensors; ``None``: the kernel runs.

    The first tensor decides about the data type, and those of its shape [..., N, D] about the sizes.
    """
    if not tensors:
        return "there is no tensor"
    rule, first = KERNELS[name], tensors[0]
    reason = refusal_of_device(first.device, first.dtype) or _failed.get((name, first.device))
    if reason is not None:
        return reason
    compared = {x.dtype for x in tensors[: rule.alike]}
    if len(compared) > 1:
        return f"data types differ: {', '.join(sorted(map(_short, compared)))}"
    if any(x.numel() == 0 for x in tensors[:2]):
        return "empty tensors"
    merges = rule.file == "merge"
    width, tokens = (first.shape[2:].numel(), first.shape[1]) if merges else (first.shape[-1], first.shape[-2])
    if width > rule.max_width:
        return f"width {width}: the kernel takes up to {rule.max_width}"
    if rule.max_tokens is not None and tokens > rule.max_tokens:
        return f"{tokens} tokens: the kernel takes up to {rule.max_tokens}"
    if rule.max_pairs is not None and first.shape[0] * tokens**2 > rule.max_pairs:
        return f"{first.shape[0]} x {tokens} x {tokens} cosines: the kernel takes up to {rule.max_pairs}"
    if any(_reach(x) > _LARGEST for x in tensors):
        return "one image reaches beyond 2^31 elements, which the kernels cannot count"
    return None


def refusal_of_device(device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why no kernel runs for this device and data type at all; ``None`` if kernels run."""
    asked = mode()
    if asked == "off":
        return f"{VARIABLE}=off"
    if device.type == "cpu":
        if asked != "triton":
            return "tensors are on the CPU"
        if not is_interpreted():
            return "tensors are on the CPU, where Triton runs under TRITON_INTERPRET=1 only"
    elif device.type != "cuda":
        return f"kernels are for CUDA, not for {device.type}"
    if not _HAS_TRITON:
        return "Triton is not installed"
    if device.type == "cuda" and asked == "auto":
        if torch.version.hip is not None:
            return f"kernels were never tried on ROCm; {VARIABLE}=triton runs them"
        capability = _capability(device)
        if capability < CAPABILITY:
            return f"compute capability {capability[0]}.{capability[1]}: kernels are for 8.0 and later"
        if capability not in TRIED:
            return (
                f"kernels were never tried on compute capability {capability[0]}.{capability[1]}; {VARIABLE}=triton "
                "runs them, python -m tokred.bench.gpu tries them"
            )
    if dtype not in DTYPES:
        return f"kernels are for {', '.join(map(_short, DTYPES))}, not for {_short(dtype)}"
    return None


def describe(device: torch.device | str, dtype: torch.dtype = torch.float32) -> str:
    """One line for people: which way operators take on this device."""
    device = torch.device(device)
    reason = refusal_of_device(device, dtype)
    if reason is not None:
        return f"plain PyTorch ({reason})"
    failed = {name: why for (name, where), why in _failed.items() if where == device}
    text = f"Triton, {VARIABLE}={mode()}"
    if failed:
        text += "; plain PyTorch for " + ", ".join(f"{name} ({why})" for name, why in sorted(failed.items()))
    return text


def require_one_device(name: str, tensors: list[Tensor]) -> None:
    """Refuse tensors on several devices, which a kernel would read as garbage.

    Raises:
        ValueError: they are.
    """
    if len(tensors) > 1 and any(x.device != tensors[0].device for x in tensors):
        devices = sorted({str(x.device) for x in tensors})
        raise ValueError(f"{name}: all tensors must be on one device, found {' and '.join(devices)}.")


def is_interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _run(name: str, plain: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    run = kernel(name)
    if torch.compiler.is_compiling():
        return run(*args, **kwargs)
    try:
        return run(*args, **kwargs)
    except Exception as error:
        if type(error).__name__ != "OutOfResources":
            raise
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        _failed[name, first.device] = str(error).splitlines()[0]
        return plain(*args, **kwargs)


def _reach(x: Tensor) -> int:
    """The largest number that counting in one image arrives at: a size, or the place of its last element."""
    last = sum((size - 1) * abs(stride) for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True) if size > 1)
    return max(last, *x.shape) if x.ndim else 0


@torch.compiler.assume_constant_result
def _capability(device: torch.device) -> tuple[int, int]:
    if device not in _capabilities:
        _capabilities[device] = torch.cuda.get_device_capability(device)
    return _capabilities[device]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
