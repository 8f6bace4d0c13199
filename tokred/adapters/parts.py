"""How a block class of a foreign library is put together, as data, and the registry of all known block classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from tokred.adapters.attention import AttentionReader

Indexed = Literal["bias", "rope", "rows", "positions"]
Select = Callable[[Any, Tensor, int], Any]


@dataclass(frozen=True)
class BlockParts:
    """The two residual branches of a block, by the names of the modules or parameters that they run through.

    A name may be a path (``output.dense``). One that the block does not have, or has as ``None``, is skipped; a
    parameter multiplies (LayerScale).

    Attributes:
        attention: the attention branch, in order.
        mlp: the MLP branch, in order; empty if the block computes both in one, so that tokens can only be reduced
            after it.
        attn: the entry of ``attention`` that is the attention module.
        attention_stack: a module list of parallel attention branches, each with the parts of ``attention``.
        mlp_stack: the same for the MLP.
        indexed: arguments of the block that are indexed by token: an attention bias [.., N or 1, N], RoPE rows
            [.., N, D] of the tokens behind the prefix, rows [N, D] or [B or 1, N, D] of all tokens, or the positions
            [B, N] themselves (without them the block counts its tokens). A function of the argument, the positions
            [B, M] that are left, and the number of prefix tokens gives what the block gets.
        bias: the argument through which an additive float bias over the keys reaches the attention; ``None`` if there
            is none, so that the reader has to add the ``owed_bias`` of the call.
        own_bias: path of a module in the block, and its method, that compute a relative position bias of full size.
        own_bias_only: the attention ignores ``bias`` when it has a bias of its own.
        own_bias_length: argument of that method that is the number of tokens.
        returns_tuple: the block returns its tokens as the first of several things.
        reader: how to read keys, queries and values of the attention.
    """

    attention: tuple[str, ...] = ("norm1", "attn", "ls1", "drop_path1")
    mlp: tuple[str, ...] = ("norm2", "mlp", "ls2", "drop_path2")
    attn: str = "attn"
    attention_stack: str | None = None
    mlp_stack: str | None = None
    indexed: Mapping[str, Indexed | Select] = field(default_factory=lambda: {"attn_mask": "bias"})
    bias: str | None = "attn_mask"
    own_bias: tuple[str, str] | None = None
    own_bias_only: bool = False
    own_bias_length: str | None = None
    returns_tuple: bool = False
    reader: AttentionReader = field(default_factory=AttentionReader)

    def attention_modules(self, block: nn.Module) -> list[nn.Module]:
        """The attention modules of ``block``; the block itself if attention and MLP are one."""
        if not self.mlp and not self.attention:
            return [block]
        return [getattr(holder, self.attn) for holder in _holders(block, self.attention_stack)]

    def bias_owner(self, block: nn.Module) -> nn.Module | None:
        """The module that computes a relative position bias for ``block``, if it has one."""
        return None if self.own_bias is None else _find(block, self.own_bias[0])

    def mlp_modules(self, block: nn.Module) -> list[nn.Module]:
        """The modules of the MLP branches."""
        parts = [_find(holder, name) for holder in _holders(block, self.mlp_stack) for name in self.mlp]
        return [part for part in parts if isinstance(part, nn.Module)]

    def attend(self, block: nn.Module, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The attention branch, without the residual: [B, N, C]; only the attention module gets ``arguments``."""
        branches, arguments = [], self.for_attention(block, arguments)
        for holder in _holders(block, self.attention_stack):
            y = x
            for name in self.attention:
                part = _find(holder, name)
                y = self.call(part, y, arguments) if name == self.attn and part is not None else _run(part, y)
            branches.append(y)
        return _sum(branches)

    def run(self, block: nn.Module, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The forward of the block's class: [B, N, C]."""
        y = self.original(block)(block, x, **arguments)
        return y[0] if self.returns_tuple else y

    def original(self, block: nn.Module) -> Callable[..., Any]:
        """The forward of the block's class, as it is."""
        return type(block).forward

    def checkpoint(self, block: nn.Module) -> Callable[..., Tensor] | None:
        """What runs a function and forgets its activations, where the block's own forward would do so."""
        return None

    def with_dense_masks(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the block, with every mask as a tensor [.., N or 1, N]."""
        return arguments

    def for_attention(self, block: nn.Module, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the attention module gets of the arguments of the block."""
        return arguments

    def call(self, attn: nn.Module, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The attention module alone, as its block calls it; of several results the first is the new tokens."""
        y = attn(x, **arguments)
        return y[0] if isinstance(y, tuple) else y

    def transform(self, block: nn.Module, x: Tensor) -> Tensor:
        """The MLP branch, without the residual: [B, M, C]."""
        branches = []
        for holder in _holders(block, self.mlp_stack):
            y = x
            for name in self.mlp:
                y = _run(_find(holder, name), y)
            branches.append(y)
        return _sum(branches)


class BlockRegistry:
    """Known block classes. A subclass counts as its base if it did not change ``forward``."""

    def __init__(self) -> None:
        self._parts: dict[type[nn.Module], BlockParts] = {}

    def add(self, block_class: type[nn.Module], parts: BlockParts) -> None:
        """Make a block class known."""
        self._parts[block_class] = parts

    def find(self, block: nn.Module) -> BlockParts | None:
        """The parts of ``block``, or ``None`` if its class is not known."""
        for cls in type(block).__mro__:
            if cls in self._parts and type(block).forward is cls.forward:
                return self._parts[cls]
        return None

    def names(self) -> list[str]:
        """The known classes, for messages."""
        return sorted(f"{cls.__module__}.{cls.__qualname__}" for cls in self._parts)


def _holders(block: nn.Module, stack: str | None) -> Iterator[nn.Module]:
    return iter([block] if stack is None else getattr(block, stack))


def _find(holder: Any, path: str) -> Any:
    """What lies at ``path``; ``None`` if it is not there."""
    for name in filter(None, path.split(".")):
        holder = getattr(holder, name, None)
    return holder


def _run(part: Any, x: Tensor) -> Tensor:
    if part is None:
        return x
    return part(x) if isinstance(part, nn.Module) else part * x


def _sum(branches: list[Tensor]) -> Tensor:
    total = branches[0]
    for branch in branches[1:]:
        total = total + branch
    return total
