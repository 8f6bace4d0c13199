"""Models of your own: any list of blocks whose class was registered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokred.adapters.attention import AttentionReader
from tokred.adapters.base import Adapter, Tower, measure_block, registry
from tokred.adapters.parts import BlockParts
from tokred.adapters.timm_attention import TimmAttentionReader
from tokred.shape import ModelShape

_EXAMPLE_TOKENS = 64


def register_adapter(
    block_class: type[nn.Module],
    *,
    attention: tuple[str, ...],
    mlp: tuple[str, ...],
    attn: str = "attn",
    bias: str = "attn_mask",
    reader: AttentionReader | None = None,
) -> None:
    """Teach tokred a block class of your own.

    A model that keeps such blocks in a list can then be patched; its attribute ``num_prefix_tokens`` (default 1) says
    how many tokens in front must stay, and ``has_class_token`` (default true) whether the first is a class token.

    Args:
        block_class: an ``nn.Module`` whose forward is two residual branches: ``x = x + attention(x)`` and then
            ``x = x + mlp(x)``.
        attention: names of the modules or scale parameters that the attention branch runs through, in order.
        mlp: the same for the MLP branch.
        attn: the entry of ``attention`` that is the attention module; its forward takes the block's arguments.
        bias: the argument through which the attention takes an additive float bias [B, 1, 1, N].
        reader: how to read its keys; by default as in timm, from ``q_norm`` and ``k_norm`` or a ``qkv`` layer.

    Example:
        >>> import torch.nn as nn, tokred
        >>> class MyBlock(nn.Module):
        ...     pass
        >>> tokred.register_adapter(MyBlock, attention=("norm1", "attn"), mlp=("norm2", "mlp"))
    """
    parts = BlockParts(
        attention=attention,
        mlp=mlp,
        attn=attn,
        bias=bias,
        indexed={bias: "bias"},
        reader=reader or TimmAttentionReader(),
    )
    registry.blocks.add(block_class, parts)


class BlockList(Tower):
    """A list of registered blocks in a model that no family knows; the self-check runs the blocks one after another."""

    def measure(self) -> ModelShape:
        """Sizes of the blocks; the number of tokens is nominal, since only an input decides it."""
        blocks = tuple(measure_block(block, parts) for block, parts in zip(self.blocks, self.parts, strict=True))
        prefix = int(getattr(self.module, "num_prefix_tokens", 1))
        return ModelShape(
            blocks=blocks,
            num_tokens=_EXAMPLE_TOKENS + prefix,
            num_prefix=prefix,
            registers_only=not getattr(self.module, "has_class_token", True),
            dim=self._dim(),
            parameters=sum(p.numel() for p in self.module.parameters()),
        )

    def example(self) -> Tensor:
        """Random tokens [1, N, C]."""
        parameter = next(self.module.parameters())
        x = torch.randn(1, self.shape.num_tokens, self.shape.dim, generator=torch.Generator().manual_seed(0))
        return x.to(parameter.device, parameter.dtype)

    def run(self, example: Any) -> Tensor:
        """Run the blocks one after another."""
        for block in self.blocks:
            example = block(example)
        return example

    def _dim(self) -> int:
        attn = self.parts[0].attention_modules(self.blocks[0])[0]
        return next(int(m.in_features) for m in attn.modules() if isinstance(m, nn.Linear))


class CustomAdapter(Adapter):
    """Every module that holds a list of registered blocks."""

    name = "your own blocks"

    def tower(self, module: nn.Module) -> Tower | None:
        """The first list of registered blocks among the children of ``module``."""
        for child in module.children():
            if isinstance(child, nn.ModuleList | nn.Sequential) and len(child):
                parts: list[BlockParts | None] = [registry.blocks.find(block) for block in child]
                known = [p for p in parts if p is not None]
                if len(known) == len(parts):
                    return BlockList(module, list(child), known)
        return None

    def supported(self) -> list[str]:
        """What was registered."""
        return ["lists of blocks registered with tokred.register_adapter"]


registry.add(CustomAdapter())
