"""A modulated block that reads a second sequence by cross-attention: a variant of the decoder's blocks."""

from collections.abc import Sequence

from torch import Tensor, nn

from tokred.tokenizers.flextok.blocks import MLP, Attention, gated, modulate, norm


class CrossBlock(nn.Module):
    """Self-attention, cross-attention to a context, MLP; eleven numbers of the time for every channel and group.

    The modulation's rows are, for each group: gates of self-attention, cross-attention and MLP; then shift and scale
    of self-attention, of the queries and of the context of cross-attention, and of the MLP.
    """

    def __init__(self, dim: int, head_width: int, hidden: int | None = None, groups: int = 2):
        super().__init__()
        self.groups = groups
        self.self_attn = Attention(dim, head_width)
        self.cross_attn = Attention(dim, head_width)
        self.mlp = MLP(dim, hidden)
        self.modulation = nn.Linear(dim, groups * 11 * dim)

    def forward(
        self, x: Tensor, context: Tensor, time: Tensor, sizes: Sequence[int], mask: Tensor | None = None
    ) -> Tensor:
        """Return the tokens [B, N, D]; ``context`` has the same groups of tokens. ``time`` is SiLU of its embedding."""
        sizes = sizes if self.groups > 1 else (sum(sizes),)
        numbers = self.modulation(time).unflatten(-1, (self.groups, 11, -1)).unbind(2)
        gate_self, gate_cross, gate_mlp, *pairs = numbers
        own, query, other, last = zip(pairs[::2], pairs[1::2], strict=True)
        x = gated(x, gate_self, self.self_attn(modulate(norm(x), *own, sizes), mask), sizes)
        seen = modulate(norm(context), *other, sizes)
        x = gated(x, gate_cross, self.cross_attn(modulate(norm(x), *query, sizes), mask, seen), sizes)
        return gated(x, gate_mlp, self.mlp(modulate(norm(x), *last, sizes)), sizes)
