"""What travels with one prompt through a language model, and what its cache must remember of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokred.adapters.attention import Call
from tokred.adapters.prompt import PlacedImage, Shortened, whole
from tokred.errors import TokredError
from tokred.token_map import TokenMap


@dataclass(frozen=True, eq=False)
class CacheRecord:
    """What a cache must remember of the prompt that was cut; travels on the cache itself.

    Attributes:
        num_tokens: T, of the prompt outside.
        full: [B] int64, real tokens of each prompt outside.
        offset: [B, 1] int64, position of the first real token.
        last: [B] int64, position of the last real token outside.
        valid: [B, M] bool, the slots at the entry of the language model; ``None``: nothing was cut there.
        axes: axes of the positions in the layers; 1 where they count tokens.
        renumbered: the positions behind the prompt follow those of its shortened form.
        stages: layers where tokens were dropped, and which of their slots are real [B, M].
    """

    num_tokens: int
    full: Tensor
    offset: Tensor
    last: Tensor
    valid: Tensor | None
    axes: int = 1
    renumbered: bool = True
    stages: tuple[tuple[int, Tensor], ...] = ()

    def since(self, cache: Any) -> int:
        """Tokens that came behind the prompt; below zero if rejected drafts were cut off again."""
        slots = self.num_tokens if self.valid is None else self.valid.shape[1]
        return cache.get_seq_length() - slots

    def mask(self, valid: Tensor, batch: int, behind: int) -> Tensor:
        """[B, M + behind] int64 mask over the slots ``valid`` and the tokens behind them; below zero cuts slots off."""
        valid = self.rows(valid, batch).long()
        return valid[:, :behind] if behind < 0 else torch.nn.functional.pad(valid, (0, behind), value=1)

    def rows(self, values: Tensor, batch: int) -> Tensor:
        """Repeat what belongs to prompts for the beams of each prompt."""
        return values if len(values) == batch else values.repeat_interleave(batch // len(values), dim=0)

    def require_continuation(self, mask: Any, positions: Tensor | None, behind: int, batch: int) -> None:
        """Refuse a cache that was cut to the short length by someone who knows the full one only.

        Args:
            mask: [B, tokens so far] as given.
            positions: [.., B, new tokens] as given.
            behind: tokens behind the prompt, the new ones included.
            batch: B.
        """
        wrong = isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] != self.num_tokens + behind
        if not wrong and positions is not None:
            last = positions[-1] if positions.ndim == 3 else positions
            wrong = bool((last[:, -1] != self.rows(self.last, batch) + behind).any())
        if wrong:
            raise TokredError(
                f"The cache holds a prompt of {self.num_tokens} tokens in fewer slots, and what comes behind it does "
                "not start where that prompt ended. A second turn of a conversation cannot reuse the cache of a "
                "shortened prompt: pass the whole conversation without past_key_values."
            )


@dataclass(eq=False)
class Stage:
    """One place between two layers where tokens are dropped.

    Attributes:
        layer: the layer at whose entry that is.
        map: from the slots before to those after.
        valid: [B, M] bool, real slots behind it.
        soft: [B, M] how much later layers see of every slot, in training; nothing is dropped then.
    """

    layer: int
    map: TokenMap | None = None
    valid: Tensor | None = None
    soft: Tensor | None = None
    masks: dict[int, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Drafting(Call):
    """One call of the model with its head.

    Attributes:
        drafts: tokens at the end that were only proposed.
    """

    catching: bool = False
    drafts: int = 0


@dataclass(eq=False)
class Passage(Call):
    """One call of the language model: what is cut at its entry and between its layers.

    Attributes:
        owner: the installed reduction.
        valid: [B, T] bool, real tokens outside.
        images: the images of every prompt.
        cut: the plan for the entry; ``None``: nothing is cut there.
        record: of the cache, behind the prompt.
        cache: what the layers write to.
        drafts: tokens behind the prompt that were only proposed.
        taps: attention modules whose queries and keys are wanted, and their layers.
        stages: what was dropped between layers so far.
        memory: what the method carries from layer to layer.
        masks: of the layers behind a stage, by its layer.
        seen: queries and keys by layer.
    """

    catching: bool = False
    owner: Any = None
    valid: Tensor | None = None
    images: list[list[PlacedImage]] = field(default_factory=list)
    cut: Shortened | None = None
    record: CacheRecord | None = None
    cache: Any = None
    drafts: int = 0
    taps: Mapping[nn.Module, int] = field(default_factory=dict)
    offset: Tensor | None = None
    last: Tensor | None = None
    axes: int = 1
    stages: list[Stage] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    masks: dict[int, Any] = field(default_factory=dict)
    seen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _whole: Shortened | None = None
    entered: bool = False

    def whole(self) -> Shortened:
        """The plan that leaves every token, padding too, where it is."""
        if self._whole is None:
            assert self.valid is not None
            self._whole = whole(self.valid, self.images)
        return self._whole

    def see(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        """Keep queries and keys of the layers before the stages."""
        layer = self.taps.get(module)
        if layer is not None and self.record is None:
            self.seen[layer] = query.detach(), key[:, :, : query.shape[2]].detach()

    def outcome(self) -> Passage:
        """What is worth remembering of it: no cache, no keys, no masks."""
        stages = [Stage(stage.layer, stage.map, stage.valid, stage.soft) for stage in self.stages]
        return Passage(None, owner=self.owner, valid=self.valid, images=self.images, cut=self.cut, stages=stages)
