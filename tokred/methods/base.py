"""What a method inside an encoder is: data and one pure function."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from tokred.cost import Convention, Cost, cost
from tokred.methods.registry import AnyMethod
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.token_map import TokenMap
from tokred.view import LayerView, Signal

Site = Literal["block", "block_end"]


@dataclass(frozen=True, kw_only=True)
class Method(AnyMethod):
    """Data and one pure function: the paper's knobs, where it acts, what it looks at, and ``reduce``.

    A method sees tensors and shapes, never a model, and holds no state of a run. How many tokens stay is a
    :class:`~tokred.schedule.Schedule`: given as ``schedule``, or solved for a ``budget``, or made by the knobs.

    Attributes:
        schedule: counts for every layer; a schedule, a file, or the name of a shipped one.
        masks: (class) its counts are what is trained: they change from step to step, in every layer its maps keep all
            tokens, and ``TokenMap.soft`` hides those that are to go.
        adaptive: (class) images may keep fewer tokens than the schedule says, never more.
        budget: what the model may cost instead: ``"2.9 GMACs"``, ``"60%"``, ``"96 tokens"``.
    """

    site: ClassVar[Site] = "block"
    tracks: ClassVar[tuple[str, ...]] = ("merge",)
    needs: ClassVar[frozenset[Signal]] = frozenset()
    adaptive: ClassVar[bool] = False
    masks: ClassVar[bool] = False

    schedule: Schedule | str | Path | None = None
    budget: str | None = None

    def __post_init__(self) -> None:
        if self.schedule is not None and self.budget is not None:
            raise ValueError(f"{type(self).__name__}: give a schedule or a budget, not both.")
        super().__post_init__()

    @property
    def proportional(self) -> bool:
        """Whether the attention of later layers counts a token as many times as the patches it stands for."""
        return False

    @property
    def pools_by_size(self) -> bool:
        """Whether average pooling at the end counts a token as many times as the patches it stands for."""
        return True

    @abstractmethod
    def law(self, shape: ModelShape) -> Schedule:
        """The schedule that the knobs ask for."""

    @abstractmethod
    def at(self, shape: ModelShape, strength: float) -> Schedule:
        """A one-parameter family of schedules for budgets: 1 reduces nothing, towards 0 ever more stays out."""

    @abstractmethod
    def reduce(self, view: LayerView) -> TokenMap:
        """Map the N tokens of ``view`` to the slots that stay, ``view.stay`` of them."""

    def penalty(self, masks: Mapping[int, Tensor], shape: ModelShape) -> Tensor | float:
        """What training adds to the loss of the task, from the soft decisions [B, P] on the patches, by layer."""
        return 0.0

    def least(self, tokens: int, num_prefix: int) -> int:
        """The fewest tokens that can stay of ``tokens`` in one layer; requests below it are clamped."""
        return min(tokens, num_prefix + 1)

    def macs(self, tokens: int, stay: Mapping[str, int], layer: int, shape: ModelShape) -> int:
        """Multiply-accumulates that deciding costs in one layer, besides reading the signals."""
        return 0

    @property
    def guests_compete(self) -> bool:
        """Whether guests take part in the next reduction, as tokens at the end; otherwise they stay beside."""
        return False

    @property
    def replaces_head(self) -> bool:
        """Whether :meth:`classify` gives the logits of the model."""
        return False

    def carried(self, shape: ModelShape, schedule: Schedule | None = None) -> Sequence[tuple[int, int]]:
        """Guests in the attention and in the MLP of every block; empty for methods without.

        Guests are tokens that go through blocks beside the sequence: the schedule does not count them, and nothing
        outside of the blocks sees them.
        """
        return ()

    def enter(self, view: LayerView, modules: nn.ModuleDict | None) -> Tensor | None:
        """[B, G, C] the guests that enter the first block; called where there will be any."""
        return None

    def leave(self, view: LayerView) -> Tensor | None:
        """[B, G, C] the guests behind a block, given its tokens and ``view.guests``."""
        return view.guests

    def classify(self, memory: Mapping[str, Any], modules: nn.ModuleDict) -> Tensor | None:
        """Logits from what was put aside, in place of the model's; ``None``: nothing was."""
        return None

    def modules(self, shape: ModelShape) -> nn.ModuleDict | None:
        """The learnable parts by the name of the block, ready for use; ``None`` for methods without.

        A method that has some takes a file of learned ones as the knob ``weights``.
        """
        return None

    def zero(self) -> Self | None:
        """The same method set to reduce nothing, or ``None`` if it has no such setting."""
        return None

    def plan(self, shape: ModelShape) -> Schedule:
        """The schedule in force on a model: read, solved or made by the knobs, then clamped to what can be done.

        Raises:
            ScheduleMismatchError: the schedule has another depth or other tracks.
            BudgetError: no schedule of this method meets the budget.
            ValueError: a knob has a value that means nothing.
        """
        if self.schedule is not None:
            given = self.schedule if isinstance(self.schedule, Schedule) else Schedule.load(self.schedule)
            given.require(shape.depth, self.tracks, shape.fingerprint)
        elif self.budget is not None:
            given = Schedule.solve(
                self.budget,
                lambda strength: self._clamped(self.at(shape, strength), shape),
                lambda schedule: self.cost(shape, schedule),
            )
        else:
            given = self.law(shape)
        return self._clamped(given, shape)

    def cost(self, shape: ModelShape, schedule: Schedule | None = None, convention: Convention = "full") -> Cost:
        """What a forward pass costs with this method on a model of that shape."""
        plan = schedule or self.plan(shape)
        tokens = plan.tokens(shape.num_tokens)
        entering = (shape.num_tokens, *tokens[:-1])
        guests = self.carried(shape, plan)
        seen = [n + g for n, (g, _) in zip(entering, guests, strict=True)] if guests else entering
        extra = [
            self.macs(seen[layer], plan.stay(layer), layer, shape) + n * sum(block.reads.get(s, 0) for s in self.needs)
            if tokens[layer] < n
            else 0
            for layer, (n, block) in enumerate(zip(entering, shape.blocks, strict=True))
        ]
        after = self.site == "block_end"
        return cost(shape, tokens, reduction_macs=extra, guests=guests, after_block=after, convention=convention)

    def _clamped(self, schedule: Schedule, shape: ModelShape) -> Schedule:
        tracks: dict[str, list[int]] = {name: [] for name in self.tracks}
        tokens = shape.num_tokens
        for layer in range(schedule.depth):
            least = self.least(tokens, shape.num_prefix)
            for name in self.tracks:
                tokens = min(tokens, max(schedule.tracks[name][layer], least))
                tracks[name].append(tokens)
        return replace(schedule, tracks={name: tuple(counts) for name, counts in tracks.items()})


def class_attention_macs(tokens: int, layer: int, shape: ModelShape) -> int:
    """Multiply-accumulates of :meth:`tokred.LayerView.class_attention`: one row, or all of them without class token."""
    block = shape.blocks[layer]
    if shape.has_class_token:
        return tokens * block.read_width
    return tokens * tokens * (block.read_width + block.heads)
