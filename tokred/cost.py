"""Analytic cost of a reduced model: tokens, multiply-accumulates and activation bytes, layer by layer.

One multiply-accumulate (MAC) is two floating-point operations. Three conventions are in use in the literature, and
papers rarely say which: see :data:`CONVENTIONS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tokred.shape import BlockShape, ModelShape

Convention = Literal["full", "diffrate", "pitome"]

CONVENTIONS: dict[Convention, str] = {
    "full": "every matrix product of a forward pass: stem, attention at the tokens that enter a block, MLP at those "
    "that its reduction left, the reduction itself, head",
    "diffrate": "DiffRate's formula: full without the reduction, the stem also counted for the prefix tokens",
    "pitome": "PiToMe's tables: blocks only, both branches at the tokens that enter the block",
}


@dataclass(frozen=True)
class LayerCost:
    """Cost of one block for one image.

    Attributes:
        tokens_in: tokens that its attention sees.
        tokens_out: tokens that leave it.
        macs: multiply-accumulates of attention and MLP.
        reduction_macs: multiply-accumulates of the reduction itself.
        activation_bytes: bytes that its linear layers write.
    """

    tokens_in: int
    tokens_out: int
    macs: int
    reduction_macs: int
    activation_bytes: int


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass for one image; ``convention`` says what is counted."""

    layers: tuple[LayerCost, ...]
    stem_macs: int
    head_macs: int
    parameters: int
    convention: Convention

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole forward pass."""
        blocks = sum(layer.macs + layer.reduction_macs for layer in self.layers)
        return self.stem_macs + blocks + self.head_macs

    @property
    def gmacs(self) -> float:
        """Multiply-accumulates in units of 10^9."""
        return self.macs / 1e9

    @property
    def reduction_macs(self) -> int:
        """The part of :attr:`macs` that is spent on deciding what to reduce."""
        return sum(layer.reduction_macs for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Bytes that the linear layers of all blocks write; what training has to keep is of this order."""
        return sum(layer.activation_bytes for layer in self.layers)

    @property
    def mean_tokens(self) -> float:
        """Average, over the blocks, of the tokens that enter the MLP."""
        return sum(layer.tokens_out for layer in self.layers) / len(self.layers)

    @property
    def tokens_per_layer(self) -> tuple[int, ...]:
        """Tokens that leave every block."""
        return tuple(layer.tokens_out for layer in self.layers)


def cost(
    shape: ModelShape,
    tokens: Sequence[int] | None = None,
    *,
    reduction_macs: Sequence[int] | None = None,
    guests: Sequence[tuple[int, int]] = (),
    after_block: bool = False,
    convention: Convention = "full",
    bytes_per_number: int = 4,
) -> Cost:
    """Compute what a forward pass costs.

    Args:
        shape: the model.
        tokens: tokens that leave every block, prefix included; ``None`` for the unreduced model.
        reduction_macs: cost of the reduction in every block, from :meth:`tokred.methods.Method.macs`.
        guests: tokens beside these in the attention and in the MLP of every block; empty: none.
        after_block: the reduction happens after the MLP, which then sees all tokens that entered the block.
        convention: what to count, a key of :data:`CONVENTIONS`.
        bytes_per_number: 4 for float32, 2 for half precision.

    Raises:
        ValueError: an unknown convention, or one count too many or too few.
    """
    if convention not in get_args(Convention):
        raise ValueError(f"Unknown convention {convention!r}; known: {', '.join(CONVENTIONS)}.")
    tokens = [shape.num_tokens] * shape.depth if tokens is None else list(tokens)
    if len(tokens) != shape.depth:
        raise ValueError(f"{len(tokens)} token counts were given for {shape.depth} blocks.")
    overhead = list(reduction_macs or [0] * shape.depth) if convention == "full" else [0] * shape.depth
    layers, entering = [], shape.num_tokens
    beside = guests or [(0, 0)] * shape.depth
    for block, leaving, extra, (attending, transformed) in zip(shape.blocks, tokens, overhead, beside, strict=True):
        whole = block.parallel or after_block or convention == "pitome"
        in_mlp = entering + attending if whole else leaving + transformed
        layers.append(_layer(block, entering + attending, in_mlp, leaving, extra, bytes_per_number))
        entering = leaving
    stem, head = shape.stem_macs, shape.head_macs + shape.head_weights * entering + shape.dense_macs
    if convention == "diffrate":
        stem = round(stem * shape.num_tokens / shape.num_patches)
    elif convention == "pitome":
        stem = head = 0
    return Cost(tuple(layers), stem, head, shape.parameters, convention)


def _layer(block: BlockShape, entering: int, in_mlp: int, leaving: int, extra: int, width: int) -> LayerCost:
    attention = block.attention_weights * entering + 2 * entering * entering * block.attention_width
    written = block.attention_features * entering + block.mlp_features * in_mlp
    return LayerCost(
        tokens_in=entering,
        tokens_out=leaving,
        macs=attention + block.mlp_weights * in_mlp,
        reduction_macs=extra,
        activation_bytes=written * width,
    )
