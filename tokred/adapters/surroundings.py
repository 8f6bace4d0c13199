"""What surrounds the blocks of an encoder: it runs them, collects their outputs, and pools the last."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tokred.adapters.attention import Run, calling, current_call
from tokred.adapters.pool import votes
from tokred.adapters.site import Reduction
from tokred.state import TokenState


class RunningMethod:
    """A method of a foreign module, replaced on the instance, during which the blocks report their state.

    Args:
        module: the module.
        name: of the method.
        full_length: the blocks return one row for every token that entered.
        lead: finds, from the arguments by name, the tokens [B or 1, K] that take the place of prefix tokens.
        after: changes what the method returned, given the state behind the last block.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        *,
        full_length: bool = False,
        lead: Callable[[dict[str, Any]], Tensor | None] | None = None,
        after: Callable[[Any, TokenState], Any] | None = None,
    ) -> None:
        self.module = module
        self.name = name
        self.full_length = full_length
        self.lead = lead
        self.argument_names = list(inspect.signature(getattr(type(module), name)).parameters)[1:]
        self.after = after

    def install(self) -> Callable[[], object]:
        """Replace the method; returns what takes it back."""
        setattr(self.module, self.name, self.run)
        return self.remove

    def remove(self) -> None:
        """Give the instance its own method back."""
        vars(self.module).pop(self.name, None)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own method."""
        lead = None
        if self.lead is not None:
            lead = self.lead({**dict(zip(self.argument_names, args, strict=False)), **kwargs})
        with calling(Run(None, full_length=self.full_length, lead=lead)) as run:
            result = getattr(type(self.module), self.name)(self.module, *args, **kwargs)
        return result if run.state is None or self.after is None else self.after(result, run.state)


def reduced_state() -> TokenState | None:
    """The state behind the last block of the model that is running in this thread, once tokens were reduced."""
    call = current_call()
    return None if call is None or call.state is None or not call.state.reduced else call.state


class SizedKeys:
    """Pre-hook for an ``nn.MultiheadAttention`` that pools: a merged token is attended to once for every patch."""

    def __init__(self, reduction: Reduction) -> None:
        self.by_size = reduction.method.pools_by_size

    def __call__(
        self, _module: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]] | None:
        """Add the logarithm of the sizes to the logits of the keys."""
        state = reduced_state()
        if state is None:
            return None
        x = inputs[0]
        bias = votes(state, self.by_size).log().to(x.dtype)
        given = kwargs.get("key_padding_mask")
        return inputs, {**kwargs, "key_padding_mask": bias if given is None else bias + given}
