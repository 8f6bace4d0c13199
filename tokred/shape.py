"""The numbers that cost and schedules need to know about a model, and nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class BlockShape:
    """One transformer block.

    Attributes:
        attention_weights: multiply-accumulates per token in the linear layers of the attention branch.
        attention_width: heads times head width; a product of queries and keys costs ``N^2`` times this.
        mlp_weights: multiply-accumulates per token in the MLP.
        heads: number of query heads of the attention that methods read.
        reads: extra multiply-accumulates per token that reading a signal of the attention costs, by signal.
        head_dim: width of one head; 0 where it is ``attention_width / heads``.
        attention_features: numbers that the linear layers of the attention branch write per token.
        mlp_features: the same for the MLP.
        parallel: the MLP runs beside the attention, so that it sees the tokens before the reduction.
    """

    attention_weights: int
    attention_width: int
    mlp_weights: int
    heads: int = 1
    head_dim: int = 0
    attention_features: int = 0
    mlp_features: int = 0
    parallel: bool = False
    reads: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def key_width(self) -> int:
        """Width of the keys of one head."""
        return self.head_dim or self.attention_width // self.heads

    @property
    def read_width(self) -> int:
        """Width of all keys of the attention that methods read (the first of parallel ones)."""
        return self.heads * self.key_width


@dataclass(frozen=True)
class ModelShape:
    """A stack of blocks over tokens.

    Attributes:
        blocks: one entry a block.
        num_tokens: tokens that enter the first block, prefix tokens included.
        num_prefix: class, distillation and register tokens in front, which are never reduced.
        registers_only: no class token is among them; otherwise it is the first.
        grid: rows and columns of the patches; ``None`` if they form no grid.
        in_rows: the patches come row by row, so that they can be drawn.
        dim: width of the residual stream.
        stem_macs: multiply-accumulates before the first block.
        head_macs: after the last block, whatever the number of tokens.
        head_weights: after the last block, per token (attention pooling).
        dense_macs: after the last block, for all patches of the input together (where each gets its row back).
        parameters: learned numbers of the whole model.
    """

    blocks: tuple[BlockShape, ...]
    num_tokens: int
    num_prefix: int = 1
    registers_only: bool = False
    grid: tuple[int, int] | None = None
    in_rows: bool = True
    dim: int = 0
    stem_macs: int = 0
    head_macs: int = 0
    head_weights: int = 0
    dense_macs: int = 0
    parameters: int = 0

    @classmethod
    def vit(
        cls,
        *,
        depth: int,
        dim: int,
        heads: int,
        patches: int,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        num_prefix: int = 1,
        num_classes: int = 1000,
    ) -> ModelShape:
        """The shape of a plain ViT that need not exist as a model; ``patches`` are its patch tokens."""
        hidden = int(dim * mlp_ratio)
        block = BlockShape(
            attention_weights=4 * dim * dim,
            attention_width=dim,
            mlp_weights=2 * dim * hidden,
            heads=heads,
            attention_features=4 * dim,
            mlp_features=dim + hidden,
        )
        side = round(patches**0.5)
        return cls(
            blocks=(block,) * depth,
            num_tokens=patches + num_prefix,
            num_prefix=num_prefix,
            grid=(side, side) if side * side == patches else None,
            dim=dim,
            stem_macs=patches * dim * 3 * patch_size**2,
            head_macs=dim * num_classes,
        )

    @property
    def fingerprint(self) -> str:
        """What tells this model, at this size of its input, from others; training does not change it."""
        widths = sorted({(b.attention_weights, b.attention_width, b.mlp_weights, b.heads) for b in self.blocks})
        heads = "/".join(str(heads) for *_, heads in widths)
        weights = sum(block.attention_weights + block.mlp_weights for block in self.blocks)
        head = self.head_macs + self.head_weights + self.dense_macs
        return (
            f"{self.depth} blocks of width {self.dim} with {heads} heads and {weights} weights, a head of {head}, "
            f"{self.num_tokens} tokens, {self.num_prefix} before the patches"
        )

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def has_class_token(self) -> bool:
        """The first token is a class token."""
        return self.num_prefix > 0 and not self.registers_only

    @property
    def num_patches(self) -> int:
        """Tokens that may be reduced."""
        return self.num_tokens - self.num_prefix

    def with_tokens(self, num_tokens: int) -> ModelShape:
        """The same model at another input size; what each patch costs is scaled with them, the grid is unknown."""
        if num_tokens == self.num_tokens:
            return self
        scale = (num_tokens - self.num_prefix) / max(self.num_patches, 1)
        stem, dense = int(self.stem_macs * scale), int(self.dense_macs * scale)
        return replace(self, num_tokens=num_tokens, grid=None, stem_macs=stem, dense_macs=dense)
