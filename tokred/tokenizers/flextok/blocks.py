"""Transformer blocks without affine norms: plain, and modulated by the time of a flow (adaLN-zero)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention, silu

from tokred.errors import ConfigError


def norm(x: Tensor) -> Tensor:
    """Layer norm over the last axis without scale and shift; statistics are taken in float32."""
    return layer_norm(x, x.shape[-1:], eps=1e-5)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, sizes: Sequence[int]) -> Tensor:
    """Scale by 1 + scale and shift every group of tokens of x [B, N, D]; shift and scale are [B, G, D]."""
    if len(sizes) == 1:
        return torch.addcmul(shift, x, 1 + scale)
    parts = enumerate(x.split(list(sizes), 1))
    return torch.cat([torch.addcmul(shift[:, g : g + 1], part, 1 + scale[:, g : g + 1]) for g, part in parts], 1)


def gated(x: Tensor, gate: Tensor, branch: Tensor, sizes: Sequence[int]) -> Tensor:
    """Add a branch [B, N, D] to x, every group of tokens by its gate of [B, G, D]."""
    if len(sizes) == 1:
        return torch.addcmul(x, gate, branch)
    parts = zip(x.split(list(sizes), 1), branch.split(list(sizes), 1), strict=True)
    return torch.cat([torch.addcmul(a, gate[:, g : g + 1], b) for g, (a, b) in enumerate(parts)], 1)


class Attention(nn.Module):
    """Multi-head attention; queries and keys are layer-normalised in every head.

    Args:
        scale: of the scores; by default 8 / head_width, which is the usual one at a width of 64 only.
    """

    def __init__(
        self, dim: int, head_width: int, *, bias: bool = False, qk_norm: bool = True, scale: float | None = None
    ):
        super().__init__()
        if dim % head_width:
            raise ConfigError(f"A width of {dim} cannot be cut into heads of {head_width}.")
        self.heads, self.qk_norm = dim // head_width, qk_norm
        self.scale = 8 / head_width if scale is None else scale
        self.qkv = nn.Linear(dim, 3 * dim, bias)
        self.proj = nn.Linear(dim, dim, bias)

    def forward(self, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Return [B, N, D]. Keys and values come from ``context`` where it is given; ``mask`` is true where allowed."""
        if context is None:
            q, k, v = (self._heads(part) for part in self.qkv(x).chunk(3, -1))
        else:
            D, bias = x.shape[-1], self.qkv.bias
            q = self._heads(linear(x, self.qkv.weight[:D], None if bias is None else bias[:D]))
            kv = linear(context, self.qkv.weight[D:], None if bias is None else bias[D:])
            k, v = (self._heads(part) for part in kv.chunk(2, -1))
        if self.qk_norm:
            q, k = norm(q), norm(k)
        y = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return self.proj(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, N, d]


class MLP(nn.Module):
    """Gated by SiLU with a hidden width of floor(8 / 3 * D), or plain with GELU and 4 * D, where no other is given."""

    def __init__(self, dim: int, hidden: int | None = None, *, gated: bool = True, bias: bool = False):
        super().__init__()
        self.gated = gated
        if hidden is None:
            hidden = 8 * dim // 3 if gated else 4 * dim
        self.up = nn.Linear(dim, (2 if gated else 1) * hidden, bias)
        self.down = nn.Linear(hidden, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, N, D]."""
        x = self.up(x)
        if not self.gated:
            return self.down(nn.functional.gelu(x))
        gate, value = x.chunk(2, -1)
        return self.down(silu(gate) * value)


class Block(nn.Module):
    """Attention, then MLP, each on the normalised tokens and added to them."""

    def __init__(
        self,
        dim: int,
        head_width: int,
        hidden: int | None = None,
        *,
        gated: bool = True,
        bias: bool = False,
        qk_norm: bool = True,
        scale: float | None = None,
    ):
        super().__init__()
        self.attn = Attention(dim, head_width, bias=bias, qk_norm=qk_norm, scale=scale)
        self.mlp = MLP(dim, hidden, gated=gated, bias=bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the tokens [B, N, D]."""
        x = x + self.attn(norm(x), mask)
        return x + self.mlp(norm(x))


class ModulatedBlock(nn.Module):
    """A block whose branches are scaled, shifted and gated by the time, every group of tokens by its own numbers.

    The modulation is zero at first, and the block then the identity. Its rows are, for each group: gate of the
    attention, gate of the MLP, shift and scale of the attention, shift and scale of the MLP.
    """

    def __init__(self, dim: int, head_width: int, hidden: int | None = None, groups: int = 2):
        super().__init__()
        self.groups = groups
        self.attn = Attention(dim, head_width)
        self.mlp = MLP(dim, hidden)
        self.modulation = nn.Linear(dim, groups * 6 * dim)

    def forward(self, x: Tensor, time: Tensor, sizes: Sequence[int], mask: Tensor | None = None) -> Tensor:
        """Return the tokens [B, N, D].

        Args:
            x: the tokens, one group after the other.
            time: SiLU of the time embedding, [B, D] or [1, D].
            sizes: tokens of each group.
            mask: where attention is allowed.
        """
        sizes = sizes if self.groups > 1 else (sum(sizes),)
        numbers = self.modulation(time).unflatten(-1, (self.groups, 6, -1)).unbind(2)  # six of [B, G, D]
        gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = numbers
        x = gated(x, gate_attn, self.attn(modulate(norm(x), shift_attn, scale_attn, sizes), mask), sizes)
        return gated(x, gate_mlp, self.mlp(modulate(norm(x), shift_mlp, scale_mlp, sizes)), sizes)


def initialise(module: nn.Module) -> None:
    """Give every linear layer Xavier-uniform weights and a bias of zero; modulations become zero.

    Keys start as queries, so that tokens of the same place attend to each other from the first step (Trockman & Kolter,
    arXiv 2305.09828).
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            if name.endswith("modulation"):
                nn.init.zeros_(part.weight)
            else:
                nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, Attention):
            queries, keys, _ = part.qkv.weight.data.chunk(3)
            keys.copy_(queries)
