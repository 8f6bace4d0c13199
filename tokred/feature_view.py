"""What a method may look at between the vision encoder and the language model: one image and its visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from tokred import ops
from tokred.layout import VisualLayout


@dataclass(eq=False)
class EncoderAttention:
    """The attention of one encoder layer over a batch of partitions; what is computed is kept.

    Attributes:
        q: [P, H, T, D] queries as the attention uses them; T = prefix tokens and then patches.
        k: [P, G, T, D] keys; G divides H.
        scale: factor on their products.
        num_prefix: class and register tokens in front.
        has_class_token: the first of them is a class token.
        pool: sums or averages what belongs to one visual token, [P, H, patches] -> [P, H, N]; ``None``: they are one.
    """

    q: Tensor
    k: Tensor
    scale: float
    num_prefix: int = 0
    has_class_token: bool = False
    pool: Callable[[Tensor], Tensor] | None = None
    _kept: dict[str, Tensor] = field(default_factory=dict)

    def class_row(self) -> Tensor:
        """[P, H, N] attention of the class token to the patches, of all T keys; float32."""
        return self._once("class_row", lambda: ops.attention_row(self.q, self.k, self.scale)[..., self.num_prefix :])

    def class_logits(self) -> Tensor:
        """[P, H, N] the same before the softmax."""
        return self._once("class_logits", self._logits)

    def received(self) -> Tensor:
        """[P, H, N] attention that every patch receives on average over the queries of the patches."""
        return self._once("received", lambda: self._means[0])

    def given(self) -> Tensor:
        """[P, H, N] average over the patches of the attention that every patch gives them."""
        return self._once("given", lambda: self._means[1])

    def patch_keys(self) -> Tensor:
        """[P, N, D] keys of the patches averaged over the heads; float32."""
        keys = ops.head_mean(self.k[:, :, self.num_prefix :].float())
        return keys if self.pool is None else self.pool(keys.transpose(1, 2)).transpose(1, 2)

    @cached_property
    def _means(self) -> tuple[Tensor, Tensor]:
        return ops.attention_means(self.q, self.k, self.scale, self.num_prefix)

    def _logits(self) -> Tensor:
        keys = self.k[:, :, self.num_prefix :].float().repeat_interleave(self.q.shape[1] // self.k.shape[1], dim=1)
        return (self.q[:, :, :1].float() * self.scale @ keys.transpose(-1, -2)).squeeze(2)

    def _once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if name not in self._kept:
            values = compute()
            self._kept[name] = values if self.pool is None else self.pool(values)
        return self._kept[name]


class FeatureView:
    """One image between encoder and language model. A view is made for one call and never changes.

    Shapes: P partitions of N = h w patches, n visual tokens (newlines included), D width of the language model.

    Attributes:
        layout: where each of the n tokens comes from.
        features: [n, D] visual tokens as the language model will read them.
        produced_by: index of the encoder layer that made the features: their matching attention is its attention.
        depth: layers of the encoder.
    """

    def __init__(
        self,
        layout: VisualLayout,
        features: Tensor,
        *,
        attention: Callable[[int], EncoderAttention] | None = None,
        partitions: slice = slice(None),
        patches: Callable[[], Tensor] | None = None,
        class_feature: Callable[[], Tensor] | None = None,
        project: Callable[[Tensor], Tensor] | None = None,
        produced_by: int = 0,
        depth: int = 1,
    ) -> None:
        self.layout = layout
        self.features = features
        self.produced_by = produced_by
        self.depth = depth
        self._attention = attention
        self._partitions = partitions
        self._patches = patches
        self._class_feature = class_feature
        self._project = project

    @property
    def num_tokens(self) -> int:
        """n."""
        return self.layout.num_tokens

    def layer(self, layer: int | None = None) -> int:
        """The index from 0 of a layer that may count from the end; ``None`` for :attr:`produced_by`."""
        return self.produced_by if layer is None else range(self.depth)[layer]

    def attention(self, layer: int | None = None) -> EncoderAttention:
        """The attention of one layer over all partitions of the batch; :meth:`mine` takes this image's out of it."""
        if self._attention is None:
            raise KeyError("The method did not declare that it reads attention.")
        return self._attention(self.layer(layer))

    def mine(self, values: Tensor) -> Tensor:
        """The rows of this image [P, ...] out of those of the batch."""
        return values[self._partitions]

    def saliency(self, layer: int | None = None, heads: str = "mean") -> Tensor:
        """[P, N] attention of the class token to every patch, mean or sum of the heads.

        In an encoder without class token the attention that a patch receives takes its place.
        """
        attention = self.attention(layer)
        values = self.mine(attention.class_row() if attention.has_class_token else attention.received())
        return values.sum(dim=1) if heads == "sum" else values.mean(dim=1)

    def received(self, layer: int | None = None) -> Tensor:
        """[P, N] attention received, averaged over patches and heads."""
        return self.mine(self.attention(layer).received()).mean(dim=1)

    def given(self, layer: int | None = None) -> Tensor:
        """[P, N] attention given to patches, averaged over patches and heads."""
        return self.mine(self.attention(layer).given()).mean(dim=1)

    def class_logits(self, layer: int | None = None) -> Tensor:
        """[P, N] products of the class query with the keys before the softmax, averaged over heads."""
        return self.mine(self.attention(layer).class_logits()).mean(dim=1)

    def keys(self, layer: int | None = None) -> Tensor:
        """[P, T, D] keys of one layer averaged over the heads, prefix tokens included."""
        return ops.head_mean(self.mine(self.attention(layer).k))

    def patch_keys(self, layer: int | None = None) -> Tensor:
        """[P, N, D] keys of the patches averaged over the heads, pooled where several patches make one token."""
        return self.mine(self.attention(layer).patch_keys())

    @property
    def has_class_feature(self) -> bool:
        """Whether :attr:`class_feature` can be asked for."""
        return self._class_feature is not None

    @cached_property
    def patches(self) -> Tensor:
        """[P, N, C] features before the projector."""
        if self._patches is None:
            raise KeyError("This model does not show the features of its encoder patch by patch.")
        return self.mine(self._patches())

    @cached_property
    def class_feature(self) -> Tensor:
        """[P, C] feature of the class token at the layer of :attr:`patches`."""
        if self._class_feature is None:
            raise KeyError("This model has no class token.")
        return self.mine(self._class_feature())

    def project(self, x: Tensor) -> Tensor:
        """The projector: [..., C] -> [..., D]."""
        if self._project is None:
            raise KeyError("The projector of this model does not act on every patch alone.")
        return self._project(x)
