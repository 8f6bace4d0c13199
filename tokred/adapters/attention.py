"""Reading keys, queries and values of an attention module while it runs, without touching how it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from tokred.errors import UnsupportedModelError
from tokred.state import TokenState
from tokred.view import Signal


@dataclass(eq=False)
class Call:
    """One call of one block: the state of its tokens, and what hooks caught during it, where tokens are reduced.

    ``size_bias`` is the bias over the keys for sizes, ``owed_bias`` the same where no argument brings it to the
    attention. ``packed_images`` is how many images the block gets one behind another as one sequence, if it does.
    ``outer`` is the call inside which this one runs.
    """

    state: TokenState | None
    catching: bool = True
    caught: dict[str, Tensor] = field(default_factory=dict)
    size_bias: Tensor | None = None
    owed_bias: Tensor | None = None
    packed_images: int | None = None
    outer: Call | None = None

    def see(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        """Take what an attention function got: queries [B, H, N, D], keys and values [B, G, N, D], and the mask."""
        if self.catching:
            self.caught.update(q=query, k=key, v=value)
            if mask is not None:
                self.caught["bias"] = mask


@dataclass(eq=False)
class Run(Call):
    """One call of what surrounds the blocks; ``state`` is that of the block that ran last.

    Attributes:
        full_length: blocks hand out one row for every token that entered: merged tokens are copied back to all of
            their places, dropped ones keep the features they had when they were dropped.
        lead: [B, K] or [1, K] the tokens that take the place of prefix tokens (the end of a text, detection tokens);
            they are moved to the front, in the order that they have. Negative ones count from the end.
    """

    catching: bool = False
    full_length: bool = False
    lead: Tensor | None = None


class Removable(Protocol):
    """What can be taken out of a model again, such as a hook."""

    def remove(self) -> None:
        """Take it out."""
        ...


C = TypeVar("C", bound=Call)


class _Current(threading.local):
    call: Call | None = None


_current = _Current()


def current_call() -> Call | None:
    """The call that runs in this thread, for hooks."""
    return _current.call


@contextmanager
def calling(call: C) -> Iterator[C]:
    """Make ``call`` the current one of this thread."""
    before, _current.call = _current.call, call
    call.outer = before
    try:
        yield call
    finally:
        _current.call = before


def catch(name: str, value: Tensor) -> None:
    """Keep a tensor for the call that runs in this thread, if it wants any; the first of a name is kept."""
    call = _current.call
    if call is not None and call.catching:
        call.caught.setdefault(name, value)


def catch_input(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Forward pre-hook, once the name is given with ``functools.partial`` (which can be pickled)."""
    catch(name, inputs[0])


def catch_output(name: str, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """The same as a forward hook."""
    catch(name, output)


class AttentionReader:
    """Reads the signals of one kind of attention module; families override what differs.

    ``hooks`` installs what catches tensors during a call; ``signals`` turns what was caught into the signals of a view.
    """

    def hooks(self, attn: nn.Module, needs: Iterable[Signal]) -> list[Removable]:
        """Install the hooks that the signals need, and those without which the module takes no mask; maybe none."""
        if not needs:
            return []
        raise TypeError(f"No way is known to read {sorted(needs)} of {type(attn).__name__}.")

    def signals(
        self, attn: nn.Module, caught: Mapping[str, Tensor], arguments: Mapping[str, Any], num_prefix: int
    ) -> Mapping[Signal, Callable[[], Tensor]]:
        """The signals, each computed when it is called."""
        return {}

    def heads(self, attn: nn.Module) -> int:
        """Number of query heads."""
        return int(getattr(attn, "num_heads", 1))

    def head_dim(self, attn: nn.Module) -> int:
        """Width of the keys of one head.

        Raises:
            UnsupportedModelError: the module does not show it.
        """
        head_dim = getattr(attn, "head_dim", None)
        if isinstance(head_dim, int):
            return head_dim
        for name, parts in (("qkv", 3), ("q_proj", 1)):
            out = getattr(getattr(attn, name, None), "out_features", None)
            if isinstance(out, int):
                return out // parts // self.heads(attn)
        raise UnsupportedModelError(
            f"{type(attn).__name__} has neither head_dim, qkv nor q_proj, so the cost of its attention cannot be read."
        )

    def width(self, attn: nn.Module) -> int:
        """A product of all queries with all keys, and one with all values, cost ``N^2`` times this."""
        return self.heads(attn) * self.head_dim(attn)

    def reads(self, attn: nn.Module) -> dict[str, int]:
        """Extra multiply-accumulates per token that reading a signal costs, for signals that are not free."""
        return {}

    def scale(self, attn: nn.Module) -> float | None:
        """Factor on the products of queries and keys; ``None`` for one over the root of the head width."""
        return getattr(attn, "scale", None)
