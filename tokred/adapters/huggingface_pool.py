"""Pools of transformers' encoders, made to count every patch once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokred.adapters.pool import votes, weigh
from tokred.adapters.surroundings import reduced_state
from tokred.errors import UnsupportedModelError
from tokred.state import TokenState
from tokred.token_map import take


class Averaged:
    """Scale the patches of an encoder's output, so that the mean that follows counts every patch once."""

    def __init__(self, num_prefix: int) -> None:
        self.num_prefix = num_prefix

    def __call__(self, output: Any, state: TokenState) -> Any:
        """Weigh the last hidden state of an encoder output."""
        if state.reduced:
            output.last_hidden_state = weigh(output.last_hidden_state, votes(state, True), self.num_prefix)
        return output


def weigh_patches(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Pre-hook for a pool that averages all but the class token."""
    state = reduced_state()
    return None if state is None else (weigh(inputs[0], votes(state, True), 1), *inputs[1:])


def reduced_mask(
    _module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Pre-hook for a pool that takes the padding mask of the image: the mask of the tokens that are left."""
    state = reduced_state()
    if state is None or state.short is not None or len(inputs) < 2 or inputs[1] is None:
        return None
    valid = torch.ones(state.slot().shape[0], state.num_tokens) if state.valid is None else state.valid
    return (inputs[0], valid.to(inputs[1].device, inputs[1].dtype), *inputs[2:]), kwargs


def one_row_a_patch(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Pre-hook for a pool that takes neither sizes nor masks: a merged token comes once for every patch of it."""
    state = reduced_state()
    if state is None:
        return None
    if state.valid is not None:
        raise UnsupportedModelError(
            "This attention pool takes no mask, so a method that keeps another number of tokens in every image cannot "
            "be used. Use one with a fixed number."
        )
    slot = state.slot()
    alive = int((slot[0] >= 0).sum())
    rows = (slot < 0).to(torch.int8).argsort(dim=1, stable=True)[:, :alive]
    return (take(inputs[0], rows if state.short is not None else slot.gather(1, rows)), *inputs[1:])
