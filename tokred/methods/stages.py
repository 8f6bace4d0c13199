"""Schedules of methods that reduce at a few blocks only."""

from __future__ import annotations

from collections.abc import Sequence

from tokred.errors import ScheduleMismatchError
from tokred.schedule import share_of
from tokred.shape import ModelShape

Keep = float | int | tuple[float, ...]


def check_keep(keep: Keep) -> None:
    """Raise ValueError unless ``keep`` is a share, a number of tokens, or shares for every stage."""
    for value in keep if isinstance(keep, tuple) else (keep,):
        share_of(value, 1)


def stage_layers(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """The blocks that reduce: those given, or the quarters of the depth (3, 6 and 9 of 12 blocks).

    Raises:
        ScheduleMismatchError: a block that the model does not have.
    """
    if layers is None:
        return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)}))
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong:
        raise ScheduleMismatchError(f"Blocks {wrong} do not exist: the model has the blocks 0 to {depth - 1}.")
    return tuple(sorted(layers))


def stage_ends(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """The blocks behind which methods reduce that stand before a block: those given, or the last before each quarter.

    Behind block 2 is before block 3: of 12 blocks the default is 2, 5 and 8.

    Raises:
        ScheduleMismatchError: a block that the model does not have.
    """
    if layers is None:
        return tuple(sorted({max(layer - 1, 0) for layer in stage_layers(None, depth)}))
    return stage_layers(layers, depth)


def staged(keep: Keep, layers: Sequence[int] | None, shape: ModelShape) -> tuple[int, ...]:
    """Patches that stay after every block: share q leaves q, q^2, q^3, ... of the initial patches at the stages.

    Args:
        keep: the share q; a number of patches for the last stage; or the share of the initial patches for every stage.
        layers: blocks that reduce, see :func:`stage_layers`.
        shape: the model.

    Source: the common protocol of "Which Tokens to Use?" (arXiv 2308.04657), section 4.
    """
    stages = stage_layers(layers, shape.depth)
    if isinstance(keep, tuple):
        if len(keep) != len(stages):
            raise ScheduleMismatchError(f"keep lists {len(keep)} shares for the {len(stages)} stages {stages}.")
        shares = list(keep)
    elif isinstance(keep, int):
        shares = [share_of(keep, shape.num_patches) ** ((i + 1) / len(stages)) for i in range(len(stages))]
    else:
        shares = [keep ** (i + 1) for i in range(len(stages))]
    counts, patches, left = [], shape.num_patches, dict(zip(stages, shares, strict=True))
    for layer in range(shape.depth):
        if layer in left:
            exact = left[layer] * shape.num_patches
            patches = min(patches, max(round(exact) if isinstance(keep, int) else int(exact), 1))
        counts.append(patches)
    return tuple(counts)
