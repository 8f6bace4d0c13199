"""Learnable parts of methods: one for every block that reduces, made the same in every run, and loaded from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tokred.errors import ConfigError, DataError, ScheduleMismatchError
from tokred.folders import shipped_folder
from tokred.methods.base import Method
from tokred.shape import ModelShape
from tokred.view import LayerView

M = TypeVar("M", bound=nn.Module)


@contextmanager
def same_start() -> Iterator[None]:
    """Parts that are made inside are the same in every run; who draws random numbers outside gets the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def stage_parts(method: Method, shape: ModelShape, make: Callable[[int], nn.Module]) -> nn.ModuleDict:
    """A part for every block in which tokens are reduced.

    Args:
        method: whose schedule says which blocks these are.
        shape: the model.
        make: makes the part of a block, given how many patches it leaves.
    """
    before, parts = shape.num_tokens, nn.ModuleDict()
    with same_start():
        for layer, after in enumerate(method.plan(shape).tokens(before)):
            if after < before:
                parts[str(layer)] = make(after - shape.num_prefix)
            before = after
    return parts


def load_parts(
    modules: nn.ModuleDict, path: str | Path, outline: Callable[[dict[str, Tensor]], str] | None = None
) -> nn.ModuleDict:
    """Fill learnable parts from a safetensors file; returns them.

    Args:
        modules: the parts.
        path: the file, as ``save_file(handle.modules.state_dict(), path)`` writes it, or the name of a shipped one:
            ``"vit-fmnist-parts/dynamicvit-0.7"``.
        outline: says in a few words what a state dict holds; by default the shape of the first tensor that differs.

    Raises:
        DataError: there is no such file.
        ConfigError: it was made for other blocks, another width, or another method.
    """
    file = shipped_folder("models") / f"{path}.safetensors"
    file = Path(path) if not file.is_file() else file
    if not file.is_file():
        raise DataError(f"There is no file {path} with learned parts. Leave weights out to start from untrained ones.")
    found, wanted = load_file(file), dict(modules.state_dict())
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if shapes != {name: tuple(value.shape) for name, value in wanted.items()}:
        here, there = (outline(found), outline(wanted)) if outline is not None else _differing(found, wanted)
        raise ConfigError(f"{path} holds {here}; this model needs {there}.")
    modules.load_state_dict(found)
    return modules


def part_of(view: LayerView, kind: type[M]) -> M:
    """The learnable part for the block of a view.

    Raises:
        ConfigError: the view has none.
    """
    if not isinstance(view.module, kind):
        raise ConfigError(
            f"This method has a learnable part for every block that reduces, and there is none for block {view.layer}. "
            "Patch the model at the input size that it is used with, or give a view the parts of method.modules(shape)."
        )
    return view.module


def first_slots(rows: Tensor, slots: int) -> Tensor:
    """The first ``slots`` of the learned rows [K, ...]: an input with fewer tokens leaves the last ones out.

    Raises:
        ScheduleMismatchError: more slots are wanted than were learned.
    """
    if slots > len(rows):
        raise ScheduleMismatchError(
            f"The learned parts make {len(rows)} slots, the schedule of this input wants {slots}. Patch the model at "
            "the largest input size that it is used with; smaller inputs take the first slots."
        )
    return rows[:slots]


def _differing(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[str, str]:
    """The first tensor that only one of two state dicts has, or that has two shapes, in both."""

    def said(state: dict[str, Tensor], name: str) -> str:
        return f"{name} of shape {list(state[name].shape)}" if name in state else f"no {name}"

    names = sorted(found.keys() | wanted.keys())
    name = next(n for n in names if n not in found or n not in wanted or found[n].shape != wanted[n].shape)
    return said(found, name), said(wanted, name)
