"""The same reduction placed by hand, as a layer of a model of your own."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from tokred.methods.base import Method
from tokred.shape import BlockShape, ModelShape
from tokred.token_map import TokenMap
from tokred.view import LayerView


class Reduce(nn.Module):
    """Reduces tokens [B, N, C] to [B, M, C] where it stands.

    Similarity is that of the tokens themselves, since a layer sees no keys; methods that need attention cannot
    be placed by hand.

    Args:
        method: such as ``tokred.ToMe(r=8)``; its schedule is read for a model of one layer.
        num_prefix: tokens in front that must stay.

    Example:
        >>> import torch, tokred
        >>> layer = tokred.nn.Reduce(tokred.ToMe(r=8))
        >>> layer(torch.randn(2, 65, 32)).shape
        torch.Size([2, 57, 32])
    """

    def __init__(self, method: Method, num_prefix: int = 1) -> None:
        super().__init__()
        unread = method.needs - {"keys", "head_keys", "before"}
        if unread:
            raise ValueError(
                f"{type(method).__name__} needs {', '.join(sorted(unread))} of an attention, which a layer "
                "placed by hand does not see. Use ToMe, PiToMe or Random, or tokred.patch on the whole model."
            )
        self.method, self.num_prefix = method, num_prefix
        if getattr(method, "weights", None) is not None or method.modules(self._shape(num_prefix + 2, 4)) is not None:
            raise ValueError(
                f"{type(method).__name__} has learnable parts, which a layer placed by hand does not hold. Use one "
                "without, such as ToMe or DPCKNN(weighting='equal'), or tokred.patch on the whole model."
            )

    @overload
    def forward(self, x: Tensor) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]: ...

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Reduce ``x`` [B, N, C], with gradients through the merge.

        Args:
            x: the tokens.
            sizes: [B, N], patches that each token stands for (ones at first); merging then weighs by them.

        Returns:
            The tokens [B, M, C]; with ``sizes`` also the new sizes [B, M], whose logarithm, added to the attention
            logits of every key, gives proportional attention.
        """
        token_map = self.map(x, sizes)
        reduced = token_map.apply(x, sizes)
        return reduced if sizes is None else (reduced, token_map.apply_size(sizes))

    @torch.no_grad()
    def map(self, x: Tensor, sizes: Tensor | None = None) -> TokenMap:
        """Where the tokens of ``x`` [B, N, C] go."""
        batch, tokens, width = x.shape
        stay = self.method.plan(self._shape(tokens, width)).stay(0)
        if min(stay.values()) >= tokens:
            return TokenMap.identity(batch, tokens, x.device)
        view = LayerView(
            x,
            stay=stay,
            num_prefix=self.num_prefix,
            sizes=sizes,
            signals={"keys": x, "head_keys": x.unsqueeze(1), "before": x},
        )
        return self.method.reduce(view)

    def _shape(self, tokens: int, width: int) -> ModelShape:
        block = BlockShape(attention_weights=0, attention_width=width, mlp_weights=0)
        return ModelShape(blocks=(block,), num_tokens=tokens, num_prefix=self.num_prefix, dim=width)

    def extra_repr(self) -> str:
        """The method."""
        return repr(self.method)
