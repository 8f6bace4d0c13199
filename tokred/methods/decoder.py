"""What a method between the layers of a language model is: knobs, the layers where it acts, one pure function."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from tokred.decoder_view import DecoderView
from tokred.methods.registry import AnyMethod, Place
from tokred.token_map import TokenMap


@dataclass(frozen=True, kw_only=True)
class DecoderMethod(AnyMethod):
    """Drops visual tokens at the entry of some layers of the language model; text always stays.

    Tokens keep the positions they had. They are really dropped: later layers and their caches are shorter. Counts are
    those of a prompt: the visual tokens of all its images compete with one another.
    """

    place: ClassVar[Place] = "decoder"
    reads_attention: ClassVar[bool] = True
    """(class) It reads queries and keys of the layer before."""
    reads_inputs: ClassVar[bool] = False
    """(class) It reads the embeddings, too: ``start`` wants a view of them."""

    @abstractmethod
    def stages(self, depth: int) -> tuple[int, ...]:
        """The layers, from 1 on, at whose entry tokens are dropped."""

    @abstractmethod
    def reduce(self, view: DecoderView) -> TokenMap:
        """Map the T tokens of every prompt to those that stay, in order (``view.select``)."""

    def start(self, view: DecoderView) -> None:
        """Look at the embeddings at the entry of layer 0, without attention, and put something into ``view.memory``."""

    def zero(self) -> Self | None:
        """The same method set to drop nothing, or ``None`` if it has no such setting."""
        return None

    def modules(self, depth: int, dim: int) -> nn.ModuleDict | None:
        """The learnable parts, by the name of the layer; ``None`` for methods without."""
        return None

    def soften(self, view: DecoderView) -> Tensor | None:
        """[B, T] in (0, 1], how much later layers see of each token in training; ``None``: tokens are dropped."""
        return None


def scaled_layers(layers: Sequence[int], of: int, depth: int) -> tuple[int, ...]:
    """Layers of a model of ``of`` layers at the same relative depth in a model of ``depth`` layers.

    The nearest layers, from 1 on. Where two fall together the later one moves up; what finds no room is left out.

    >>> scaled_layers((2, 6, 15), 32, 28), scaled_layers((2, 6, 15), 32, 4)
    ((2, 5, 13), (1, 2, 3))
    """
    found: list[int] = []
    for layer in layers:
        found.append(max(nearest_layer(layer, of, depth), found[-1] + 1 if found else 1))
    return tuple(layer for layer in found if layer < depth)


def nearest_layer(layer: int, of: int, depth: int) -> int:
    """The place of one layer of ``of`` among ``depth`` layers, halves up."""
    return (2 * layer * depth + of) // (2 * of)


def count_share(number: Tensor, keep: float | int, rule: Callable[[float], int] = round) -> Tensor:
    """[B] int64: how many of ``number`` [B] tokens stay; computed in Python, since float32 would round differently.

    Args:
        number: how many there are.
        keep: a share (float), or that many (int).
        rule: from the exact share to a whole number.
    """
    counts = [min(keep, n) if isinstance(keep, int) else rule(n * keep) for n in number.tolist()]
    return torch.tensor(counts, dtype=torch.int64, device=number.device)


def check_layers(layers: Sequence[int], depth: int | None = None) -> None:
    """Refuse layers that are not ascending, below 1, or beyond ``depth``."""
    wrong = [n for n in layers if n < 1 or (depth is not None and n >= depth)]
    if wrong or list(layers) != sorted(set(layers)):
        bound = "" if depth is None else f" and {depth - 1}"
        raise ValueError(
            f"layers={tuple(layers)}: tokens are dropped at the entry of ascending layers from 1 on{bound}; layer 0 "
            "has no layer before it to look at."
        )
