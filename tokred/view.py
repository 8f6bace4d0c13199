"""What a method may look at: the signals at one site of one layer, each computed on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokred import ops

Signal = Literal["keys", "head_keys", "q", "k", "v", "before"]


class LayerView:
    """The tokens of a batch at one layer, and what the model thinks about them.

    A view is made for one call and never changes. Shapes: B images, N tokens (prefix tokens first), H heads, D head
    width, C model width.

    Attributes:
        x: [B, N, C] residual stream where the reduction acts.
        layer: index of the block, from 0.
        depth: number of blocks.
        num_prefix: tokens in front that must stay.
        has_class_token: the first of them is a class token, and not a register.
        stay: tokens that stay after this layer, prefix included, for every track of the schedule.
        num_initial: tokens that entered the first block.
        sizes: [B, N] float32, patches that each token stands for; ``None`` while all are one.
        valid: [B, N] bool, false for padding, which must not influence other tokens; ``None``: all are real.
        scale: factor on the products of ``q`` and ``k``.
        bias: additive attention bias, broadcastable to [B, H, N, N], or ``None``.
        module: the learnable part of the method for this layer, or ``None``.
        soft: [B, N] how much soft decisions of earlier layers left of each token, in training; ``None``: all.
        guests: [B, G, C] tokens that go along beside the sequence, or ``None``.
        memory: what this method put aside in earlier layers of the same forward.
    """

    def __init__(
        self,
        x: Tensor,
        *,
        stay: Mapping[str, int],
        layer: int = 0,
        depth: int = 1,
        num_prefix: int = 0,
        has_class_token: bool | None = None,
        num_initial: int | None = None,
        sizes: Tensor | None = None,
        valid: Tensor | None = None,
        scale: float | None = None,
        bias: Tensor | None = None,
        module: nn.Module | None = None,
        soft: Tensor | None = None,
        guests: Tensor | None = None,
        memory: dict[str, Any] | None = None,
        signals: Mapping[Signal, Tensor | Callable[[], Tensor]] | None = None,
    ) -> None:
        self.x = x
        self.stay = stay
        self.layer = layer
        self.depth = depth
        self.num_prefix = num_prefix
        self.has_class_token = num_prefix > 0 if has_class_token is None else has_class_token
        self.num_initial = num_initial if num_initial is not None else x.shape[1]
        self.sizes = sizes
        self.valid = valid
        self._scale = scale
        self.bias = bias
        self.module = module
        self.soft = soft
        self.guests = guests
        self.memory = memory if memory is not None else {}
        self._signals: dict[Signal, Tensor | Callable[[], Tensor]] = dict(signals or {})

    @property
    def batch(self) -> int:
        """B, the number of images."""
        return self.x.shape[0]

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens, prefix included."""
        return self.x.shape[1]

    @property
    def num_patches(self) -> int:
        """N without the prefix tokens."""
        return self.num_tokens - self.num_prefix

    @property
    def keys(self) -> Tensor:
        """[B, N, D] keys averaged over the heads, before key normalisation and rotation."""
        return self._signal("keys")

    @property
    def head_keys(self) -> Tensor:
        """[B, H, N, D] keys of every head, before key normalisation and rotation."""
        return self._signal("head_keys")

    @property
    def q(self) -> Tensor:
        """[B, H, N, D] queries as the attention uses them."""
        return self._signal("q")

    @property
    def k(self) -> Tensor:
        """[B, G, N, D] keys as the attention uses them; G divides H."""
        return self._signal("k")

    @property
    def v(self) -> Tensor:
        """[B, G, N, D] values."""
        return self._signal("v")

    @property
    def before(self) -> Tensor:
        """[B, N, C] residual stream before the attention of this layer."""
        return self._signal("before")

    @property
    def scale(self) -> float:
        """Factor on the products of :attr:`q` and :attr:`k`."""
        return self._scale if self._scale is not None else self.q.shape[-1] ** -0.5

    def attention_row(self, index: int = 0) -> Tensor:
        """[B, H, N] attention of token ``index`` (the class token: 0) to every token; only this row is computed."""
        return ops.attention_row(self.q, self.k, self.scale, index, self.bias)

    def attention_received(self) -> Tensor:
        """[B, H, N] attention that every token receives on average over the queries that are there."""
        votes = torch.ones(self.batch, self.num_tokens, device=self.x.device)
        for there in (self.valid, self.soft):
            votes = votes if there is None else votes * there
        votes = (votes / votes.sum(dim=1, keepdim=True)).unsqueeze(1).expand(self.q.shape[:3])
        return ops.attention_received(self.q, self.k, self.scale, votes, self.bias)

    def attention_matrix(self) -> Tensor:
        """[B, H, N, N] float32: the whole attention, for methods that iterate over it."""
        return ops.attention_matrix(self.q, self.k, self.scale, self.bias)

    def patch_attention(self) -> Tensor:
        """[B, H, P] attention of the class token to the P patches.

        In a model without class token the average attention that each patch receives takes its place.
        """
        attention = self.attention_row(0) if self.has_class_token else self.attention_received()
        return attention[:, :, self.num_prefix :]

    def class_attention(self) -> Tensor:
        """[B, P] :meth:`patch_attention`, averaged over the heads."""
        return self.patch_attention().mean(dim=1)

    def prefix_index(self) -> Tensor:
        """[B, P] indices of the prefix tokens."""
        return torch.arange(self.num_prefix, device=self.x.device).expand(self.batch, -1)

    def keep_padding(self, score: Tensor) -> Tensor:
        """Raise the ``score`` [B, P] of padding above all others, so that a fixed number of real patches is reduced.

        The best real patch is raised with it, so that something is left of an image that is smaller than this number.
        """
        return score if self.valid is None else keep_padding(score, self.valid[:, self.num_prefix :])

    def _signal(self, name: Signal) -> Tensor:
        value = self._signals.get(name)
        if value is None:
            raise KeyError(f"The method did not declare that it needs the signal {name!r}.")
        if not isinstance(value, Tensor):
            value = self._signals[name] = value()
        return value


def keep_padding(score: Tensor, valid: Tensor) -> Tensor:
    """:meth:`LayerView.keep_padding` for patches [B, P] that are real where ``valid`` is true."""
    best = score.masked_fill(~valid, -torch.inf).argmax(dim=1, keepdim=True)
    return score.masked_fill(~valid, torch.inf).scatter(1, best, torch.inf)
