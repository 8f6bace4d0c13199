"""What a patch promises on any model, as checks that raise AssertionError; none trusts the library's own trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tokred
from tokred.adapters import find_tower
from tokred.adapters.parts import BlockParts

EXACT = 1e-5
MLPS = ("mlp", "ffn", "feed_forward", "ffns.0.mlp", "intermediate")


@torch.no_grad()
def run(model: nn.Module, x: Any) -> Tensor:
    """What a model is run for, without gradients; models of transformers take keywords and return several things."""
    if not hasattr(model, "config"):
        output = model(x)
        return output[0] if isinstance(output, tuple) else output
    output = model(**x)
    named = [output.get(name) for name in ("logits", "image_embeds", "pooler_output", "feature_maps")]
    found = next((value for value in named if value is not None), None)
    found = found[-1] if isinstance(found, tuple) else found
    return output.last_hidden_state[:, 0] if found is None else found


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


@dataclass(frozen=True)
class Seen:
    """Tokens that entered every block and every MLP (the block itself if it has none), and the output."""

    blocks: list[int]
    mlps: list[int]
    output: Tensor


def tokens_seen(model: nn.Module, x: Any) -> Seen:
    """Count the tokens by forward hooks, and run the model."""
    blocks, mlps, hooks = [], [], []
    for block in find_tower(model).blocks:
        hooks.append(block.register_forward_pre_hook(lambda *given: blocks.append(_tokens(*given)), with_kwargs=True))
        mlp = next((m for name, m in block.named_modules() if name in MLPS), block)
        hooks.append(mlp.register_forward_pre_hook(lambda *given: mlps.append(_tokens(*given)), with_kwargs=True))
    try:
        return Seen(blocks, mlps, run(model, x))
    finally:
        for hook in hooks:
            hook.remove()


def _tokens(_module: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> int:
    """Tokens in the first input."""
    return next(iter([*inputs, *kwargs.values()])).shape[-2]


class Same:
    """Equal to another only if both hold the very same object."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that a patch could leave behind: instance and class dictionaries, hooks, parameters, print."""
    modules = dict(model.named_modules())
    classes = {cls for module in modules.values() for cls in type(module).__mro__}
    return {
        "instances": {path: _content(vars(module)) for path, module in modules.items()},
        "classes": {cls: _content(dict(vars(cls))) for cls in classes},
        "state": [(name, Same(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()],
        "text": repr(model),
    }


def _content(attributes: dict[str, Any]) -> list[tuple[str, Any]]:
    entries: list[tuple[str, Any]] = []
    for name, value in attributes.items():
        inside = [(k, Same(v)) for k, v in value.items()] if isinstance(value, dict) else None
        entries.append((name, inside if inside is not None else Same(value) if not _plain(value) else value))
    return entries


def _plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str | tuple | type(None))


def assert_same(model: nn.Module, before: dict[str, Any]) -> None:
    """Raise unless nothing of :func:`snapshot` has changed."""
    after = snapshot(model)
    assert after["instances"].keys() == before["instances"].keys(), "modules were added or removed"
    for path, content in before["instances"].items():
        assert after["instances"][path] == content, f"attributes of {path or 'the model'} are not as before"
    for cls, content in before["classes"].items():
        assert after["classes"][cls] == content, f"the class {cls.__name__} was changed"
    for (name, old, value), (new_name, new, new_value) in zip(before["state"], after["state"], strict=True):
        assert name == new_name, "keys of the state dict have changed"
        assert old == new, f"parameter {name} was replaced"
        assert torch.equal(value, new_value), f"parameter {name} has changed"
    assert after["text"] == before["text"], "the model prints differently"


def keeps_promises(model: nn.Module, method: tokred.Method, x: Any) -> None:
    """Patch, look from all sides, and take the patch out again.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    before, output = snapshot(model), run(model, x)
    entering = tokens_seen(model, x).blocks[0]
    with tokred.patch(model, method) as handle:
        assert_idle_is_identity(handle, x, output)
        seen = tokens_seen(model, x)
        assert_counts(handle, entering, seen)
        assert_reduction_shows(seen.output, output)
    assert_same(model, before)
    assert torch.equal(run(model, x), output), "after removal the output is not that of before, bit for bit"
    zero = method.zero()
    if zero is not None:
        with tokred.patch(model, zero, verify=False):
            found = run(model, x)
        assert torch.equal(found, output), f"{zero!r} changes the output by {difference(found, output):.1e}"


def assert_idle_is_identity(handle: tokred.Handle, x: Any, output: Tensor) -> None:
    """With nothing reduced, the replaced blocks give the output of the original ones, and they really run."""
    blocks, parts = handle.tower.blocks, handle.tower.parts
    first = handle.reduction.first
    replaced = ["forward" in vars(block) for block in blocks]
    assert replaced == [layer >= first for layer in range(len(blocks))], f"blocks replaced: {replaced}"
    in_two = sum(bool(p.mlp) and handle.method.site == "block" for p in parts[first:])
    with (
        mock.patch.object(BlockParts, "attend", autospec=True, side_effect=BlockParts.attend) as attend,
        mock.patch.object(BlockParts, "transform", autospec=True, side_effect=BlockParts.transform) as transform,
    ):
        handle.reduction.idle = True
        try:
            idle = run(handle.model, x)
        finally:
            handle.reduction.idle = False
    ran = (attend.call_count, transform.call_count)
    assert ran == (in_two, in_two), f"of {in_two} blocks in two branches {ran} ran by their parts"
    assert difference(idle, output) <= EXACT, f"idle blocks change the output by {difference(idle, output):.1e}"


def assert_counts(handle: tokred.Handle, entering: int, seen: Seen) -> None:
    """Every block and every MLP sees the number of tokens that the schedule says; adaptive methods never more."""
    method, parts = handle.method, handle.tower.parts
    leaving = method.plan(handle.tower.shape.with_tokens(entering)).tokens(entering)
    wanted = [entering, *leaving[:-1]]
    carried = method.carried(handle.tower.shape.with_tokens(entering)) or [(0, 0)] * len(parts)
    in_mlp = [  # where it is the block itself that is watched, guests are not seen
        before + (guests if p.mlp else 0) if not p.mlp or method.site == "block_end" else after + left
        for before, after, p, (guests, left) in zip(wanted, leaving, parts, carried, strict=True)
    ]
    if set(seen.blocks) == {entering}:  # the full length stands between the blocks of a dense model; MLPs tell more
        wanted = seen.blocks
    found, expected = [*seen.blocks, *seen.mlps], [*wanted, *in_mlp]
    fits = all(f <= w for f, w in zip(found, expected, strict=True)) if method.adaptive else found == expected
    assert fits, f"blocks and MLPs see {found} tokens, the schedule says {expected}"
    assert leaving[-1] < entering, "the method under test reduces nothing"


def assert_reduction_shows(reduced: Tensor, output: Tensor) -> None:
    """The output is finite, of the same shape, and no longer that of the whole model."""
    assert reduced.shape == output.shape, f"output {tuple(reduced.shape)} instead of {tuple(output.shape)}"
    assert torch.isfinite(reduced).all(), "the output is not finite"
    assert difference(reduced, output) > 1e-4, "the output is that of the whole model: the patch does nothing"


def survivors_are_exact(model: nn.Module, x: Any) -> None:
    """Pruned tokens are gone and nothing else: survivors are those of the whole model with the pruned keys masked.

    The whole model runs unpatched; the masks go into the attention function of torch, behind all position embeddings.
    So this holds only if rows of RoPE and of relative biases went with their tokens.
    """
    method = tokred.TopK(keep=0.7, layers=(0, 1))
    with tokred.patch(model, method, trace=True, verify=False) as handle:
        reduced = last_tokens(model, x)
        slots = [handle.trace.slot(layer) for layer in range(handle.tower.shape.depth)]
    alive = [torch.ones_like(slots[0], dtype=torch.bool), *[slot >= 0 for slot in slots[:-1]]]
    with masked_keys(model, alive):
        whole = last_tokens(model, x)
    slot = slots[-1]
    image, token = torch.nonzero(slot >= 0, as_tuple=True)
    row = slot[image, token]
    if reduced.shape[1] == slot.shape[1]:  # a dense model: in full length, every token is back in its place
        row = token
    else:
        assert (slot >= 0).sum(dim=1).tolist() == [reduced.shape[1]] * len(reduced), "kept and traced tokens differ"
    found, expected = reduced[image, row], whole[image, token]
    assert difference(found, expected) <= 1e-4, (
        f"survivors differ by {difference(found, expected):.1e} from masked ones"
    )


def last_tokens(model: nn.Module, x: Any) -> Tensor:
    """What leaves the last block [B, N, C]; a sequence without a batch counts as one image."""
    found: list[Tensor] = []
    hook = (
        find_tower(model)
        .blocks[-1]
        .register_forward_hook(lambda _m, _i, output: found.append(output[0] if isinstance(output, tuple) else output))
    )
    try:
        run(model, x)
    finally:
        hook.remove()
    return found[0] if found[0].ndim == 3 else found[0][None]


@contextmanager
def masked_keys(model: nn.Module, alive: list[Tensor]) -> Iterator[None]:
    """Run the attention of block l with the keys masked that are false in ``alive[l]`` [B, N]."""
    original: Callable[..., Tensor] = F.scaled_dot_product_attention
    current: list[int] = []

    def attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
    ) -> Tensor:
        if not current:
            return original(q, k, v, attn_mask, *rest, **options)
        mask = torch.zeros(q.shape[0], 1, 1, k.shape[2]).masked_fill(~alive[current[-1]][:, None, None], -torch.inf)
        return original(q, k, v, mask if attn_mask is None else mask + attn_mask, *rest, **options)

    hooks = []
    for layer, block in enumerate(find_tower(model).blocks):
        hooks.append(block.register_forward_pre_hook(lambda _m, _i, layer=layer: current.append(layer)))
        hooks.append(block.register_forward_hook(lambda *_: current.clear()))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fast path of nn.MultiheadAttention does not call the function
    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for hook in hooks:
                hook.remove()
