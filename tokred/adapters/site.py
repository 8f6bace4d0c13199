"""One block of a patched model: runs its own parts, and reduces the tokens where the method acts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokred.adapters.attention import Call, Removable, Run, calling, current_call
from tokred.adapters.parts import BlockParts
from tokred.errors import NonFiniteError, ScheduleMismatchError
from tokred.methods.base import Method
from tokred.schedule import Schedule
from tokred.shape import ModelShape
from tokred.state import TokenState, carry, state_of
from tokred.token_map import TokenMap, gather_tokens
from tokred.view import LayerView

_ASKED_FOR = "_tokred_asked_for"


class Reduction:
    """What the sites of one patched tower share.

    Attributes:
        method: the method.
        shape: the tower at its nominal input size.
        padding_in_mask: the attention mask of the model marks padding tokens.
        trace: keep the state of the last forward.
        full_length: features leave the encoder with one row for every token that entered.
        modules: learnable parts of the method, by layer; they are not registered in the model.
        idle: run the replaced blocks without reducing anything (the self-check compares this with the original).
        hosts: the method looks at what leaves every block, or has guests.
        last: state of the last forward, if ``trace``; several if its images differ in length.
    """

    def __init__(
        self,
        method: Method,
        shape: ModelShape,
        *,
        padding_in_mask: bool = False,
        trace: bool = False,
        full_length: bool = False,
    ) -> None:
        self.method = method
        self.shape = shape
        self.padding_in_mask = padding_in_mask
        self.trace = trace
        self.full_length = full_length
        self.idle = False
        self.last: TokenState | tuple[TokenState, ...] | None = None
        self.modules = method.modules(shape)
        self._plans = {shape.num_tokens: method.plan(shape)}
        self._carries: dict[int, bool] = {}
        self.hosts = self.carries(shape.num_tokens) or method.replaces_head
        self.first = 0 if self.hosts else self._first_layer(shape.num_tokens)

    def plan(self, num_tokens: int) -> Schedule:
        """The schedule for an input of ``num_tokens`` tokens.

        Raises:
            ScheduleMismatchError: it acts on a block that the nominal schedule left alone, so that no site is there.
        """
        if self.method.masks:  # its counts change while it learns
            return self.method.plan(self.shape.with_tokens(num_tokens))
        if num_tokens not in self._plans:
            self._plans[num_tokens] = self.method.plan(self.shape.with_tokens(num_tokens))
            if self._first_layer(num_tokens) < self.first:
                raise ScheduleMismatchError(
                    f"With {num_tokens} tokens the schedule acts on an earlier block than with the "
                    f"{self.shape.num_tokens} it was patched for. Patch the model again for this input size."
                )
        return self._plans[num_tokens]

    def carries(self, num_tokens: int) -> bool:
        """Whether guests go along with an input of ``num_tokens`` tokens."""
        if num_tokens not in self._carries:
            shape = self.shape.with_tokens(num_tokens)
            carried = self.method.carried(shape, self._plans.get(num_tokens))
            self._carries[num_tokens] = any(sum(guests) for guests in carried)
        return self._carries[num_tokens]

    def acts(self, layer: int, state: TokenState, tokens: int) -> bool:
        """Whether the method is asked in a layer that ``tokens`` tokens reached."""
        if self.method.masks:
            return True
        if state.soft is not None:  # all tokens are still there, whatever the schedule says
            return self.module(layer) is not None
        return min(self.plan(state.num_initial).stay(layer).values()) < tokens

    def classify(self, state: TokenState) -> Tensor | None:
        """Logits of the method in place of the model's, if it gives some."""
        return None if self.modules is None else self.method.classify(state.memory, self.modules)

    def module(self, layer: int) -> nn.Module | None:
        """The learnable part for a layer, if there is one."""
        if self.modules is None or str(layer) not in self.modules:
            return None
        return self.modules[str(layer)]

    @property
    def name(self) -> str:
        """Class of the method, for messages."""
        return type(self.method).__name__

    def _first_layer(self, num_tokens: int) -> int:
        if self.method.masks:
            return 0
        counts = self._plans[num_tokens].tokens(num_tokens)
        return next((layer for layer, n in enumerate(counts) if n < num_tokens), len(counts))


class Site:
    """The replaced ``forward`` of one block. Holds no state of a run."""

    def __init__(self, block: nn.Module, parts: BlockParts, layer: int, reduction: Reduction) -> None:
        self.block = block
        self.parts = parts
        self.layer = layer
        self.reduction = reduction
        self.own_bias = OwnBias(block, parts)
        self.argument_names = list(inspect.signature(type(block).forward).parameters)[1:]

    def install(self) -> list[Removable]:
        """Replace the forward of the block; returns the hooks that were added."""
        self.block.forward = self.forward
        attn = self.parts.attention_modules(self.block)[0]
        hooks = self.parts.reader.hooks(attn, self.reduction.method.needs - {"before"})
        self.own_bias.install()
        return hooks

    def remove(self) -> None:
        """Give the block its own forward back."""
        vars(self.block).pop("forward", None)
        self.own_bias.remove()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block on its first argument [B, N, C], reduced or in full length; returns what the next expects."""
        arguments = {**dict(zip(self.argument_names, args, strict=False)), **kwargs}
        x = arguments.pop(self.argument_names[0])
        arguments = self.parts.with_dense_masks(arguments)
        checkpoint = self.parts.checkpoint(self.block)
        y = self._forward(x, arguments) if checkpoint is None else checkpoint(self._forward, x, arguments)
        return (y, None) if self.parts.returns_tuple else y

    def _forward(self, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        state, full = state_of(x), x
        if state is None:
            x, state = self._start(x, arguments)
        if state.short is not None:
            x = state.short
        y, state = self._run(x, state, arguments)
        if self.reduction.trace:
            self.reduction.last = state
        if state.steps and state.full_length:
            y, state = state.unmerge(y, fill=full), replace(state, short=y)
        run = current_call()
        if isinstance(run, Run):
            run.state = state
        return carry(y, state)

    def _run(self, x: Tensor, state: TokenState, arguments: dict[str, Any]) -> tuple[Tensor, TokenState]:
        """The block, on the tokens ``x`` and the guests of ``state`` behind them."""
        stay = self.reduction.plan(state.num_initial).stay(self.layer)
        reducing = self.reduction.acts(self.layer, state, x.shape[1])
        seen = state.joined()
        x = x if state.guests is None else torch.cat([x, state.guests], dim=1)
        with calling(Call(seen, catching=reducing)) as call:
            y, state = self._run_parts(x, state, self._indexed(arguments, seen, x, call), call, stay)
        return (y, state) if self.reduction.idle or not self.reduction.hosts else self._part(y, state)

    def _run_parts(
        self, x: Tensor, state: TokenState, arguments: dict[str, Any], call: Call, stay: Mapping[str, int]
    ) -> tuple[Tensor, TokenState]:
        parts, block, idle = self.parts, self.block, self.reduction.idle
        if not (call.catching or idle):
            return parts.run(block, x, arguments), state
        if self.reduction.method.site == "block_end" or not parts.mlp:
            y = parts.run(block, x, arguments)
            return self._reduce(y, x, state, stay, arguments, call) if not idle else (y, state)
        y = x + parts.attend(block, x, arguments)
        if not idle:
            y, state = self._reduce(y, x, state, stay, arguments, call)
        return y + parts.transform(block, y), state

    def _part(self, x: Tensor, state: TokenState) -> tuple[Tensor, TokenState]:
        """The tokens that leave the block, without guests, and the state with the guests that go on."""
        guests = None
        if state.guests is not None:
            x, guests = x.split([x.shape[1] - state.guests.shape[1], state.guests.shape[1]], dim=1)
        return x, replace(state, guests=self.reduction.method.leave(self._view(x, state, guests=guests)))

    def _view(self, x: Tensor, state: TokenState, **more: Any) -> LayerView:
        """What a method may look at, besides the signals of the attention."""
        shape = self.reduction.shape
        return LayerView(
            x,
            layer=self.layer,
            depth=shape.depth,
            num_prefix=shape.num_prefix,
            has_class_token=shape.has_class_token,
            num_initial=state.num_initial,
            sizes=state.sizes,
            valid=state.valid,
            module=self.reduction.module(self.layer),
            soft=state.soft,
            memory=state.memory,
            **{"stay": {}, **more},
        )

    def _reduce(
        self,
        x: Tensor,
        before: Tensor,
        state: TokenState,
        stay: Mapping[str, int],
        arguments: Mapping[str, Any],
        call: Call,
    ) -> tuple[Tensor, TokenState]:
        self._require_finite(x)
        parts, method = self.parts, self.reduction.method
        if method.guests_compete:
            state = state.joined()
        tokens = x.shape[1] if state.guests is None else x.shape[1] - state.guests.shape[1]
        x, guests = x[:, :tokens], x[:, tokens:]
        attn = parts.attention_modules(self.block)[0]
        signals: dict[Any, Callable[[], Tensor]] = dict(
            parts.reader.signals(attn, call.caught, arguments, self.reduction.shape.num_prefix)
        )
        signals["before"] = lambda: before
        bias = call.caught.get("bias", arguments.get(parts.bias or ""))
        if guests.shape[1]:
            signals = {name: partial(_first_tokens, read, tokens) for name, read in signals.items()}
            bias = None if bias is None else bias[..., : min(tokens, bias.shape[-2]), :tokens]
        view = self._view(x, state, stay=stay, scale=parts.reader.scale(attn), bias=bias, signals=signals)
        learning = method.masks or view.module is not None
        with torch.set_grad_enabled(learning and torch.is_grad_enabled()):
            token_map = method.reduce(view)
            if view.valid is not None and token_map.soft is None:
                token_map = token_map.with_padding_last(view.valid)
        call.caught.clear()  # the memory of the keys is wanted for the MLP
        y, state = state.reduce(self.layer, token_map, x)
        return torch.cat([y, guests], dim=1) if guests.shape[1] else y, state

    def _start(self, x: Tensor, arguments: Mapping[str, Any]) -> tuple[Tensor, TokenState]:
        if self.layer > self.reduction.first:
            raise RuntimeError(
                f"Block {self.layer} received tokens without their reduction state: something between the blocks "
                "made a new tensor. Remove the patch, or place tokred.nn.Reduce by hand."
            )
        valid = None
        mask = arguments.get(self.parts.bias or "") if self.reduction.padding_in_mask else None
        if mask is not None and len(mask) == len(x):  # one mask for all images is a bias, and hides no padding
            row = mask[:, 0, 0]  # the first token is never padding, so it sees all that are not
            valid = row if row.dtype == torch.bool else row > torch.finfo(row.dtype).min / 2
        origin = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        lead, full_length = asked_for(x)
        state = TokenState(num_initial=x.shape[1], valid=valid, origin=origin, full_length=full_length)
        if lead is not None:
            behind = torch.ones_like(origin).scatter(1, (lead % x.shape[1]).expand(x.shape[0], -1), 0)
            order = behind.argsort(dim=1, stable=True)
            token_map = TokenMap.select(order, x.shape[1])
            x, state = token_map.apply(x), state.after(-1, token_map)
        if self.reduction.carries(x.shape[1]) and not self.reduction.idle:
            guests = self.reduction.method.enter(self._view(x, state), self.reduction.modules)
            state = replace(state, guests=guests)
        return x, state

    def _indexed(self, arguments: dict[str, Any], state: TokenState, x: Tensor, call: Call) -> dict[str, Any]:
        """The arguments for the tokens that are there, with the bias for sizes and padding slots added."""
        arguments = dict(arguments)
        if state.position is not None:
            for name, kind in self.parts.indexed.items():
                if arguments.get(name) is not None or kind == "positions":
                    select = SELECT[kind] if isinstance(kind, str) else kind
                    rows, prefix = arguments.get(name), self.reduction.shape.num_prefix
                    if isinstance(rows, tuple | list):  # cosines and sines
                        arguments[name] = tuple(select(r, state.position, prefix) for r in rows)
                    else:
                        arguments[name] = select(rows, state.position, prefix)
        bias = key_bias(state, self.reduction.method.proportional, x.dtype)
        if bias is not None:
            call.size_bias = bias
            if self.parts.bias is None:
                call.owed_bias = bias
            elif not (self.parts.own_bias_only and self.own_bias.owner is not None):
                arguments[self.parts.bias] = add_bias(arguments.get(self.parts.bias), bias)
        return arguments

    def _require_finite(self, x: Tensor) -> None:
        # one row is enough: a value that is not finite reaches every row through the attention
        if torch.compiler.is_compiling() or x.device.type != "cpu" or x.shape[0] == 0:
            return
        if not math.isfinite(x[:, 0].sum().item()):
            raise NonFiniteError(
                f"Activations after the attention of block {self.layer} are not finite, so {self.reduction.name} "
                "cannot compare tokens. Check the input images and the precision (try bfloat16 instead of float16)."
            )


def _first_tokens(read: Callable[[], Tensor], tokens: int) -> Tensor:
    """A signal [.., N, D] without the guests behind the tokens."""
    return read()[..., :tokens, :]


def asked_for(x: Tensor) -> tuple[Tensor | None, bool]:
    """The ``lead`` and ``full_length`` of the run; kept on the tokens, for a checkpoint that runs the block again."""
    run = current_call()
    if isinstance(run, Run):
        ask_for(x, (run.lead, run.full_length))
    return getattr(x, _ASKED_FOR, (None, False))


def ask_for(x: Tensor, asked: tuple[Tensor | None, bool]) -> None:
    """Keep what :func:`asked_for` gives on the tokens."""
    setattr(x, _ASKED_FOR, asked)


class OwnBias:
    """A relative position bias that a block computes itself, cut to the tokens that are there."""

    def __init__(self, block: nn.Module, parts: BlockParts) -> None:
        self.parts = parts
        self.owner = parts.bias_owner(block)
        self.name = parts.own_bias[1] if parts.own_bias else ""

    def install(self) -> None:
        """Replace the method that computes the bias, on this instance."""
        if self.owner is not None:
            setattr(self.owner, self.name, self.bias)

    def remove(self) -> None:
        """Give the instance its own method back."""
        if self.owner is not None:
            vars(self.owner).pop(self.name, None)

    def bias(self, *args: Any, **kwargs: Any) -> Tensor:
        """[B or 1, H, M, M] the bias for the tokens of the current call."""
        call = current_call()
        state = None if call is None else call.state
        if state is not None and self.parts.own_bias_length in kwargs:
            kwargs[self.parts.own_bias_length] = state.num_initial
        bias = getattr(type(self.owner), self.name)(self.owner, *args, **kwargs)
        if call is None or state is None:
            return bias
        if state.position is not None:
            bias = select_bias(bias, state.position, 0)
        if self.parts.own_bias_only and call.size_bias is not None:
            bias = bias + call.size_bias
        call.caught["bias"] = bias if self.parts.own_bias_only or call.size_bias is None else bias + call.size_bias
        return bias


def key_bias(state: TokenState, proportional: bool, dtype: torch.dtype) -> Tensor | None:
    """[B, 1, 1, N] additive bias: log of the sizes (proportional attention), minus infinity for padding slots.

    In training the logarithm of the soft mask is added, and then it is [B, 1, N, N]: every token sees itself.
    """
    bias = None
    if proportional and state.sizes is not None:
        bias = state.sizes.log()
    elif state.valid is not None and any(step.map.valid is not None for step in state.steps):
        bias = torch.zeros_like(state.valid, dtype=torch.float32).masked_fill(~state.valid, -torch.inf)
    bias = None if bias is None else bias[:, None, None]
    visible = state.visible
    if visible is not None:
        itself = torch.eye(visible.shape[1], dtype=torch.bool, device=visible.device)
        hidden = visible.log()[:, None, None].masked_fill(itself, 0.0)
        bias = hidden if bias is None else bias + hidden
    return None if bias is None else bias.to(dtype)


def add_bias(mask: Tensor | None, bias: Tensor) -> Tensor:
    """Add a float bias to an attention mask that may be missing, boolean or additive."""
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, -torch.inf)
    return mask + bias


def select_bias(bias: Tensor, position: Tensor, num_prefix: int) -> Tensor:
    """Rows and columns ``position`` [B, M] of a bias [.., N or 1, N]: [B, .., M or 1, M]."""
    while bias.ndim < 4:
        bias = bias.unsqueeze(0)
    if bias.shape[-2] != 1:
        bias = gather_tokens(bias, position, -2)
    return gather_tokens(bias, position, -1)


def select_rope(rope: Tensor, position: Tensor, num_prefix: int) -> Tensor:
    """RoPE rows of the tokens ``position`` [B, P + M] behind the prefix: [B, H or 1, M, D].

    Args:
        rope: [N, D], [H, N, D] or [B, H or 1, N, D], without rows for the prefix.
        position: indices into all tokens.
        num_prefix: P.
    """
    while rope.ndim < 4:
        rope = rope.unsqueeze(0)
    rows = (position[:, num_prefix:] - num_prefix).clamp(min=0)  # slots that only pad a ragged batch point at token 0
    return gather_tokens(rope, rows, -2)


def select_rows(rows: Tensor, position: Tensor, num_prefix: int) -> Tensor:
    """Rows ``position`` [B, M] of a table [N, D] or [B or 1, N, D] of all tokens: [B, M, D]."""
    return rows[position] if rows.ndim == 2 else gather_tokens(rows, position, 1)


def select_positions(given: Tensor | None, position: Tensor, num_prefix: int) -> Tensor:
    """What the block takes for the positions [B, N] of its tokens: [B, M] of those that are left."""
    return position if given is None else given.expand(len(position), -1).gather(1, position)


SELECT = {"bias": select_bias, "rope": select_rope, "rows": select_rows, "positions": select_positions}
