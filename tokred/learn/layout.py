"""From the patches that should stay to the counts of a schedule, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tokred.methods import Method
from tokred.schedule import Schedule
from tokred.shape import ModelShape


def lay_out(
    method: Method,
    shape: ModelShape,
    wanted: Callable[[int, float], float],
    shares: Mapping[str, Sequence[float]],
) -> Schedule:
    """A schedule with the nearest integers to the patches that are wanted, never rising, at least what must stay.

    Args:
        method: whose tracks and ``least`` hold.
        shape: of the model.
        wanted: from the number of a layer and the patches that enter it, before rounding, to those that should stay.
        shares: for every track but the last, the part of the removal that it does in every layer. At most half of the
            patches, since stages that look for copies need the other half to compare with.
    """
    tracks: dict[str, list[int]] = {track: [] for track in method.tracks}
    exact, tokens = float(shape.num_patches), shape.num_tokens
    for layer in range(shape.depth):
        exact = min(wanted(layer, exact), exact)
        least = method.least(tokens, shape.num_prefix)
        after = min(max(shape.num_prefix + round(exact), least), tokens)
        if after > shape.num_prefix + round(exact):
            exact = float(after - shape.num_prefix)
        removed, patches = tokens - after, tokens - shape.num_prefix
        for track, parts in shares.items():
            tokens -= min(round(removed * parts[layer]), patches // 2, tokens - after)
            tracks[track].append(tokens)
        tracks[method.tracks[-1]].append(after)
        tokens = after
    return Schedule({track: tuple(counts) for track, counts in tracks.items()})


def split_of(method: Method, shape: ModelShape, schedule: Schedule) -> dict[str, list[float]]:
    """The ``shares`` that :func:`lay_out` would need: the part of the removal that each track but the last does."""
    found: dict[str, list[float]] = {track: [] for track in method.tracks[:-1]}
    before = shape.num_tokens
    for layer, after in enumerate(schedule.tokens(shape.num_tokens)):
        tokens = before
        for track, shares in found.items():
            left = min(tokens, schedule.tracks[track][layer])
            shares.append((tokens - left) / (before - after) if before > after else 0.5)
            tokens = left
        before = after
    return found
