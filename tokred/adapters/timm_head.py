"""What comes behind the blocks of a timm model: pooling by size."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from tokred.adapters.attention import Call, calling, current_call
from tokred.adapters.base import Undo
from tokred.adapters.pool import votes, weigh
from tokred.adapters.site import Reduction, add_bias
from tokred.errors import UnsupportedModelError
from tokred.state import TokenState, carry, state_of


def carry_state(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Hook for the final norm: its output keeps the state of its input."""
    carry(output, state_of(inputs[0]))


class ReducedHead:
    """The replaced ``forward_head`` of a model: average pooling counts a token once for every patch it stands for."""

    def __init__(self, model: nn.Module, reduction: Reduction) -> None:
        self.model: Any = model
        self.argument_names = list(inspect.signature(type(self.model).forward_head).parameters)[1:]
        self.reduction = reduction
        self.by_size = reduction.method.pools_by_size
        self._require_meaning()

    def _require_meaning(self) -> None:
        pool = getattr(self.model, "attn_pool", None)
        found = getattr(self.model, "global_pool", "") if pool is None else type(pool).__name__
        takes_sizes = pool is None or "attn_mask" in inspect.signature(type(pool).forward).parameters
        if found == "avgmax" or not takes_sizes:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} pools by {found!r}, which cannot count a merged token once for each "
                "patch it stands for. Use model.reset_classifier(num_classes, global_pool='avg')."
            )

    def install(self) -> Undo:
        """Replace the method on this instance."""
        self.model.forward_head = self.forward_head
        return self.remove

    def remove(self) -> None:
        """Give the instance its own method back."""
        vars(self.model).pop("forward_head", None)

    def forward_head(self, *args: Any, **kwargs: Any) -> Tensor:
        """Pool and classify tokens [B, N, C] as ``forward_features`` returned them."""
        arguments = {**dict(zip(self.argument_names, args, strict=False)), **kwargs}
        original = type(self.model).forward_head
        x = arguments[self.argument_names[0]]
        state = state_of(x)
        if state is not None and not arguments.get("pre_logits"):
            logits = self.reduction.classify(state)
            if logits is not None:
                return logits
        if state is None or not state.reduced:
            return original(self.model, **arguments)
        if arguments.get("patch_valid") is not None:
            arguments["patch_valid"] = self._valid(arguments["patch_valid"], x, state)
        if self.averages:
            arguments[self.argument_names[0]] = self._weighed(x, state, arguments.get("patch_valid"))
        with calling(Call(state)):
            return original(self.model, **arguments)

    def _valid(self, patch_valid: Tensor, x: Tensor, state: TokenState) -> Tensor:
        """[B, P] which of the patches in ``x`` are real, and not dropped."""
        first = self.model.num_prefix_tokens
        if state.short is not None:
            return patch_valid & (state.slot()[:, first:] >= 0)
        return torch.ones_like(x[:, first:, 0], dtype=torch.bool) if state.valid is None else state.valid[:, first:]

    @property
    def averages(self) -> bool:
        """Whether the model pools by the mean; read when it runs, since the classifier may be reset."""
        return getattr(self.model, "attn_pool", None) is None and getattr(self.model, "global_pool", "") == "avg"

    def _weighed(self, x: Tensor, state: TokenState, patch_valid: Tensor | None) -> Tensor:
        """Scale the tokens so that their plain mean is their mean by size."""
        if not self.by_size and state.valid is None and state.short is None and state.soft is None:
            return x
        first = 0 if getattr(self.model, "pool_include_prefix", False) else self.model.num_prefix_tokens
        count = None if patch_valid is None else patch_valid.sum(dim=1, keepdim=True)
        return weigh(x, votes(state, self.by_size), first, count)


def weigh_attention_pool(
    _module: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Tensor, ...], dict[str, Any]] | None:
    """Pre-hook for attention pooling: a token is attended to once for every patch it stands for."""
    call = current_call()
    state = None if call is None else call.state
    if state is None or (state.sizes is None and state.short is None and state.soft is None):
        return None
    tokens = inputs[0].shape[1]
    bias = votes(state, True).log()[:, None, None, -tokens:].to(inputs[0].dtype)
    return inputs, {**kwargs, "attn_mask": add_bias(kwargs.get("attn_mask"), bias)}
