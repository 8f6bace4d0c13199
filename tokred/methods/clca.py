"""CLCA: what earlier layers saw is cached and given back behind a reduction, and all of it reaches the classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from tokred.errors import UnsupportedModelError
from tokred.methods.base import Method, Site
from tokred.methods.parts import load_parts, same_start
from tokred.methods.registry import create_method, methods, register
from tokred.methods.stages import Keep, check_keep, stage_ends, stage_layers
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.state import pad_tokens
from tokred.token_map import TokenMap
from tokred.view import LayerView, Signal

_CACHE, _CLASS, _POOLED = "clca.cache", "clca.class", "clca.pooled"


class Carriers(nn.Module):
    """What carrier tokens add to the class token as it enters the first block; zero at the start.

    Args:
        count: number of carriers.
        dim: width of the tokens.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(count, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, C] carriers for class tokens [B, 1, C]."""
        return x + self.offset.to(x.dtype)


class AggregationHead(nn.Module):
    """Logits from the class tokens of several layers.

    Args:
        dim: width of the tokens.
        layers: how many layers.
        classes: how many classes.
        kernels: depth-wise kernels over the layers for every channel; 0: one linear map over the layers for all.
    """

    def __init__(self, dim: int, layers: int, classes: int, kernels: int = 2) -> None:
        super().__init__()
        wide = dim * kernels
        if kernels:
            over_layers = [nn.BatchNorm1d(dim), nn.Conv1d(dim, wide, layers, groups=dim), nn.BatchNorm1d(wide)]
            self.layers = nn.Sequential(*over_layers, nn.GELU(), nn.Conv1d(wide, classes, 1), nn.Flatten())
        else:
            over_layers = [nn.Linear(layers, 1), nn.Flatten(), nn.ReLU()]
            self.layers = nn.Sequential(*over_layers, nn.LayerNorm(dim), nn.Linear(dim, classes))

    def forward(self, x: Tensor) -> Tensor:
        """[B, classes] float32 for class tokens [B, C, layers]."""
        return self.layers(x.float())


@register("clca")
@dataclass(frozen=True, kw_only=True)
class CLCA(Method):
    """Cross-layer cache and aggregation around another method (Rios et al., arXiv 2501.00243).

    Carrier tokens, copies of the class token to start with, go through all blocks beside the sequence. Every block puts
    them and the mean of its patches into a cache; behind a block that reduces, and behind the last but one, the cache
    is emptied and what was in it joins the carriers. With ``classes`` the class tokens behind the blocks that reduce
    and behind the last one, without final norm, are put through a small convolution over the layers, and its logits
    take the place of the classifier's (timm models).

    We know the paper from its released code. ``variant="paper"`` (default) is what its description asks for: what is
    carried is no patch, is neither reduced nor pooled, and the schedule is that of the other method. In the released
    code (``"released"``, around ``topk`` or ``evit``) carried tokens stand at the end of the sequence and take part in
    its next reduction, which keeps a share of all tokens that are there; so the last rows, which it caches as carriers,
    are whatever the reduction left there, and carried tokens count in the means. Two of its failures are not repeated:
    an empty cache in the first block, and a share that removes nothing. Where its share would leave more tokens than
    the sequence had without carried ones, nothing is reduced.

    In both variants carried tokens have the place of the first patch in models that rotate keys, and that of the class
    token in those with relative biases. If the schedule reduces nothing, nothing is carried.

    Attributes:
        around: name of the method that reduces; ``None``: none does, but tokens are carried.
        keep: of that method.
        layers: blocks where it reduces, and behind which the cache is emptied; by default its own.
        carriers: number of carrier tokens.
        cache: keep the cache; without, carriers are all that is carried.
        means: put the mean of the patches into the cache.
        recover_at_last: empty the cache behind the last but one block, too.
        classes: of the aggregation head; 0: the model's own head stays.
        kernels: of the aggregation head.
        variant: see above.
        weights: a safetensors file with what was learned, the parts of the other method included.
    """

    paper: ClassVar[str] = "arXiv 2501.00243"
    learned: ClassVar[bool] = True

    around: str | None = "topk"
    keep: Keep = 0.7
    layers: tuple[int, ...] | None = None
    carriers: int = 1
    cache: bool = True
    means: bool = True
    recover_at_last: bool = True
    classes: int = 0
    kernels: int = 2
    variant: Literal["paper", "released"] = "paper"
    weights: str | Path | None = None

    def check(self) -> None:
        """Check all knobs, and those of the other method."""
        check_keep(self.keep)
        if min(self.carriers, self.classes, self.kernels) < 0:
            raise ValueError(
                f"carriers={self.carriers}, classes={self.classes}, kernels={self.kernels}: numbers from 0 on."
            )
        if self.variant not in ("paper", "released"):
            raise ValueError(f"variant={self.variant!r}: 'paper' or 'released'.")
        if self.variant == "released":
            if self.around not in ("topk", "evit", None):
                raise ValueError(f"variant='released' is known around 'topk' and 'evit'; found around={self.around!r}.")
            if not isinstance(self.keep, float):
                raise ValueError(
                    f"keep={self.keep!r}: the released variant takes one share of the tokens that are there."
                )
        if self.around is not None and methods().get(self.around) in (None, CLCA):
            known = ", ".join(name for name in methods() if name != CLCA.name)
            raise ValueError(f"around={self.around!r}: name a method inside an encoder: {known}.")
        if "keep" not in {f.name for f in fields(self.inner)} and self.schedule is None and self.budget is None:
            raise ValueError(f"around={self.around!r} has no share to keep; give a schedule or a budget.")

    @cached_property
    def inner(self) -> Method:
        """The method that reduces."""
        knobs: dict[str, Any] = {"keep": self.keep if self.around else 1.0, "layers": self.layers}
        bare = create_method(self.around or "topk")
        return bare.with_(**{f.name: knobs[f.name] for f in fields(bare) if f.name in knobs})

    @property
    def site(self) -> Site:  # type: ignore[override]
        """Where the other method acts."""
        return self.inner.site

    @property
    def tracks(self) -> tuple[str, ...]:  # type: ignore[override]
        """The counts of its schedule."""
        return self.inner.tracks

    @property
    def needs(self) -> frozenset[Signal]:  # type: ignore[override]
        """The signals that it reads."""
        return self.inner.needs

    @property
    def adaptive(self) -> bool:  # type: ignore[override]
        """Whether images may keep fewer tokens."""
        return self.inner.adaptive

    @property
    def proportional(self) -> bool:
        """Whether sizes reach the attention."""
        return self.inner.proportional

    @property
    def pools_by_size(self) -> bool:
        """Whether average pooling counts them."""
        return self.inner.pools_by_size

    @property
    def guests_compete(self) -> bool:
        """In the released variant."""
        return self.variant == "released"

    @property
    def replaces_head(self) -> bool:
        """With ``classes``."""
        return self.classes > 0

    def stages(self, depth: int) -> tuple[int, ...]:
        """The blocks that reduce by the knobs."""
        return (stage_ends if self.site == "block_end" else stage_layers)(self.layers, depth)

    def recovery(self, depth: int) -> tuple[int, ...]:
        """The blocks behind which the cache is emptied."""
        last = {max(depth - 2, 0)} if self.recover_at_last else set()
        return tuple(sorted({*self.stages(depth), *last})) if self.cache else ()

    def law(self, shape: ModelShape) -> Schedule:
        """That of the other method; in the released variant a share of all tokens that are there, carried ones too."""
        if self.variant == "paper" or self.around is None:
            return self.inner.law(shape)
        assert isinstance(self.keep, float)
        keep, prefix, stages = self.keep, shape.num_prefix, self.stages(shape.depth)
        fused = self.inner.least(shape.num_tokens, prefix) - prefix - 1  # slots beside the patches that stay

        def after(layer: int, tokens: int, guests: int) -> int:
            left = prefix + math.ceil(keep * (tokens + guests - prefix)) + fused
            return min(tokens, left) if layer in stages else tokens

        return Schedule({"prune": tuple(tokens for tokens, _ in self._walk(shape, after))})

    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """The same with ``strength`` as the share."""
        if self.variant == "paper":
            return self.inner.at(shape, strength)
        return self.with_(keep=float(strength), schedule=None, budget=None).law(shape)

    def zero(self) -> Self:
        """No head, and around a method that keeps everything."""
        nothing = {"around": "topk", "keep": 1.0, "classes": 0, "weights": None}
        return self.with_(**nothing, schedule=None, budget=None)

    def least(self, tokens: int, num_prefix: int) -> int:
        """That of the other method."""
        return self.inner.least(tokens, num_prefix)

    def macs(self, tokens: int, stay: Mapping[str, int], layer: int, shape: ModelShape) -> int:
        """That of the other method."""
        return self.inner.macs(tokens, stay, layer, shape)

    def reduce(self, view: LayerView) -> TokenMap:
        """As the other method does."""
        return self.inner.reduce(view)

    def carried(self, shape: ModelShape, schedule: Schedule | None = None) -> tuple[tuple[int, int], ...]:
        """Carriers, and what was recovered before every block."""
        tokens = (schedule or self.plan(shape)).tokens(shape.num_tokens)
        if self.around is not None and tokens[-1] == shape.num_tokens:
            return ()
        return tuple(guests for _, guests in self._walk(shape, lambda layer, *_: tokens[layer]))

    def modules(self, shape: ModelShape) -> nn.ModuleDict:
        """Those of the other method, the carriers, and the head."""
        if self.classes and not shape.has_class_token:
            raise UnsupportedModelError(
                "The aggregation head of CLCA reads class tokens, and this model has no class token. Leave classes out."
            )
        plan = self.plan(shape)
        parts = self.inner.with_(schedule=plan, budget=None).modules(shape) or nn.ModuleDict()
        with same_start():
            if self.carriers and any(guests for guests, _ in self.carried(shape, plan)):
                parts["carriers"] = Carriers(self.carriers, shape.dim)
            if self.classes:
                parts["head"] = AggregationHead(
                    shape.dim, len(self._aggregated(shape.depth)), self.classes, self.kernels
                )
        return parts if self.weights is None else load_parts(parts, self.weights)

    def enter(self, view: LayerView, modules: nn.ModuleDict | None) -> Tensor | None:
        """The carriers, and an empty cache."""
        view.memory[_CACHE], view.memory[_POOLED] = {}, {}
        if modules is None or "carriers" not in modules:
            return None
        if view.has_class_token:
            return modules["carriers"](view.x[:, :1])
        valid = None if view.valid is None else view.valid[:, view.num_prefix :]
        return modules["carriers"](mean_of(view.x[:, view.num_prefix :], valid))

    def leave(self, view: LayerView) -> Tensor | None:
        """Empty the cache behind some blocks, fill it behind others, and note the class tokens."""
        if self.classes and view.layer in self._aggregated(view.depth):
            view.memory.setdefault(_CLASS, {})[view.layer] = view.x[:, 0]
        recovery = self.recovery(view.depth)
        guests, layer = view.guests, view.layer
        if _CACHE not in view.memory or not recovery:
            return guests
        cache, pooled = view.memory[_CACHE], view.memory[_POOLED]
        if layer in recovery:
            pooled[layer] = view.num_tokens + (0 if guests is None else guests.shape[1])
            since = max((r for r in recovery if r < layer), default=0)
            found = [tokens for seen, tokens in sorted(cache.items()) if since <= seen < layer]
            recovered = [tokens for tokens in (guests, *found) if tokens is not None]
            guests = torch.cat(recovered, dim=1) if recovered else None
        if layer < recovery[-1]:
            length = pooled.get(max((r for r in recovery if r <= layer), default=-1))
            cache[layer] = self._seen(view, guests, length)
        return guests

    def classify(self, memory: Mapping[str, Any], modules: nn.ModuleDict) -> Tensor | None:
        """The logits of the aggregation head."""
        seen = memory.get(_CLASS)
        return None if seen is None else modules["head"](torch.stack([x for _, x in sorted(seen.items())], dim=2))

    def _seen(self, view: LayerView, guests: Tensor | None, length: int | None) -> Tensor | None:
        """[B, means + carriers, C] what a block puts into the cache.

        Args:
            view: the tokens that left it.
            guests: what is carried from here on.
            length: in the released variant the rows that count in the mean, all but carried ones at first.
        """
        prefix, rows, own = view.num_prefix, view.x, guests
        if self.variant == "released":
            own = rows = view.x if guests is None else torch.cat([view.x, guests], dim=1)
            rows, own = rows[:, : view.num_tokens if length is None else length], own[:, own.shape[1] - self.carriers :]
        elif own is not None:
            own = own[:, : self.carriers]
        patches = rows[:, prefix:]
        valid = (
            None if view.valid is None else pad_tokens(view.valid, rows.shape[1] - view.num_tokens, True)[:, prefix:]
        )
        parts = [mean_of(patches, valid)] if self.means else []
        parts += [own] if self.carriers and own is not None else []
        return torch.cat(parts, dim=1) if parts else None

    def _aggregated(self, depth: int) -> tuple[int, ...]:
        """The blocks whose class tokens the head reads."""
        return tuple(sorted({*self.stages(depth), depth - 1}))

    def _walk(self, shape: ModelShape, after: Callable[[int, int, int], int]) -> list[tuple[int, tuple[int, int]]]:
        """Tokens behind every block, and the guests in its attention and in its MLP.

        Args:
            shape: the model.
            after: tokens behind a block, given its index and the tokens and guests that enter it.
        """
        tokens, guests, waiting, rows = shape.num_tokens, self.carriers, 0, []
        recovery = self.recovery(shape.depth)
        for layer in range(shape.depth):
            entering, left = guests, after(layer, tokens, guests)
            if left < tokens and self.guests_compete:
                guests = 0
            rows.append((left, (entering, entering if self.site == "block_end" else guests)))
            tokens = left
            if layer in recovery:
                guests, waiting = guests + waiting, 0
            if recovery and layer < recovery[-1]:
                waiting += self.carriers + self.means
        return rows


def mean_of(x: Tensor, valid: Tensor | None) -> Tensor:
    """[B, 1, C] mean of the tokens [B, N, C] that are no padding."""
    if valid is None:
        return x.mean(dim=1, keepdim=True)
    weight = valid.float() / valid.sum(dim=1, keepdim=True).clamp(min=1)
    return (weight.unsqueeze(1) @ x.float()).to(x.dtype)
