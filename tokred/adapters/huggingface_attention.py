"""Reading the attention of transformers models, through the library's own registry of attention functions."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from tokred import ops
from tokred.adapters.attention import AttentionReader, Removable, current_call
from tokred.errors import UnsupportedModelError
from tokred.ops.proportional import choose_way, proportional_attention
from tokred.view import Signal

_EAGER = "eager_attention_forward"
NAME = "tokred"  # in transformers' registry of attention functions
_CONFIG = "_tokred_config"
_READERS = "_tokred_readers"  # how many patches read the module
_DEAF = "_tokred_deaf"  # its eager attention function ignores masks


class HuggingFaceReader(AttentionReader):
    """Queries, keys and values are what the attention function gets; raw keys are what ``k_proj`` gives.

    Args:
        core: name of the module inside of the attention module that calls the attention function; empty if it does so
            itself.
        takes_mask: the attention module hands a mask on to the attention function.
        eager_takes_mask: the eager attention function of the library's file adds a mask that it gets.
        fused: name of the layer that gives queries, keys and values one behind the other; empty if keys have their own.
    """

    def __init__(self, core: str = "", takes_mask: bool = True, eager_takes_mask: bool = True, fused: str = "") -> None:
        self.core = core
        self.takes_mask = takes_mask
        self.eager_takes_mask = eager_takes_mask
        self.fused = fused

    def hooks(self, attn: Any, needs: Iterable[Signal]) -> list[Removable]:
        """Put ``attn`` on an attention function that shows its arguments and then calls the one the model asked for.

        This is done where nothing is read, too, since our function takes masks that a kernel of the model does not.
        """
        needs, attn = set(needs), self._core(attn)
        if not needs and self.takes_mask and _functions_of(attn) is None:
            return []
        hooks: list[Removable] = [OwnAttention(attn, self.eager_takes_mask)]
        read: tuple[Signal, ...] = ("keys", "head_keys")
        for signal in read:
            if signal in needs and hasattr(attn, self.fused or "k_proj"):
                source = getattr(attn, self.fused or "k_proj")
                hooks.append(source.register_forward_hook(partial(self._catch_keys, attn, signal)))
        return hooks

    def signals(
        self, attn: Any, caught: Mapping[str, Tensor], arguments: Mapping[str, Any], num_prefix: int
    ) -> Mapping[Signal, Callable[[], Tensor]]:
        """Signals of one call."""
        return {
            "head_keys": lambda: caught.get("head_keys", caught["k"]),
            "keys": lambda: caught["keys"] if "keys" in caught else ops.head_mean(caught["k"]),
            "q": lambda: caught["q"],
            "k": lambda: caught["k"],
            "v": lambda: caught["v"],
        }

    def _catch_keys(
        self, attn: nn.Module, signal: Signal, source: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        """Keys of all heads, or their mean, taken at once, while they are in the cache."""
        call = current_call()
        if call is not None and call.catching:
            _require_in_place(attn, self.fused or "k_proj", source)
            keys = output.chunk(3, dim=-1)[1] if self.fused else output
            keys = keys.unflatten(-1, (-1, self.head_dim(attn)))
            keys = keys if call.packed_images is None else keys.reshape(call.packed_images, -1, *keys.shape[-2:])
            call.caught[signal] = ops.head_mean(keys, dim=2) if signal == "keys" else keys.transpose(1, 2)

    def heads(self, attn: Any) -> int:
        """Number of query heads."""
        attn = self._core(attn)
        named = [name for name in ("num_heads", "num_attention_heads", "n_heads") if hasattr(attn, name)]
        return int(getattr(attn, named[0]) if named else attn.config.num_attention_heads)

    def head_dim(self, attn: Any) -> int:
        """Width of the keys of one head."""
        attn = self._core(attn)
        named = getattr(attn, "attention_head_size", None) or getattr(attn, "key_value_proj_dim", None)
        return named or super().head_dim(attn)

    def scale(self, attn: Any) -> float | None:
        """Factor on the products of queries and keys."""
        attn = self._core(attn)
        return getattr(attn, "scaling", None) or getattr(attn, "scale", None)

    def _core(self, attn: Any) -> Any:
        return getattr(attn, self.core, attn)


def _require_in_place(attn: Any, name: str, source: nn.Module) -> None:
    now = getattr(attn, name)
    if now is not source:
        raise RuntimeError(
            f"The {name} of {type(attn).__name__} was replaced by {type(now).__name__} after the model was "
            "patched, so the keys that are read are not those of the model. Wrap the model first (PEFT), then patch it."
        )


class OwnAttention:
    """One attention module with a copy of its config that names our attention function.

    The config of the model stays as it is, so models that share one config stay independent, masks are made as
    before, and ``model.set_attn_implementation`` keeps working.
    """

    def __init__(self, attn: Any, eager_takes_mask: bool = True) -> None:
        if _functions_of(attn) is None:
            raise UnsupportedModelError(
                f"{type(attn).__name__} does not take its attention function from transformers' AttentionInterface, so "
                "its queries and keys cannot be read. Try a method that needs none (tokred.Random), or a model class "
                "that supports attn_implementation='sdpa'."
            )
        _register()
        self.attn = attn
        if _CONFIG not in vars(attn):
            setattr(attn, _CONFIG, attn.config)
            attn.config = copy.copy(attn.config)
            attn.config._attn_implementation_internal = NAME
            setattr(attn.config, _DEAF, not eager_takes_mask)
        setattr(attn, _READERS, getattr(attn, _READERS, 0) + 1)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A patched model that was pickled comes to a process that may not know our attention function."""
        _register()
        vars(self).update(state)

    def remove(self) -> None:
        """Give the module its config back, once nobody else reads it."""
        readers = vars(self.attn).pop(_READERS) - 1
        if readers:
            setattr(self.attn, _READERS, readers)
        else:
            self.attn.config = vars(self.attn).pop(_CONFIG)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """What modules call in the place of their own attention function; a packed sequence comes as one image."""
    call = current_call()
    images = None if call is None else call.packed_images
    if images is None:
        return _attend(module, query, key, value, attention_mask, **kwargs)
    q, k, v = (x[0].unflatten(1, (images, -1)).transpose(0, 1) for x in (query, key, value))
    y, weights = _attend(module, q, k, v, attention_mask, **kwargs)
    return y.flatten(0, 1)[None], weights


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Show queries [B, H, N, D], keys and values to the running call; then attend as the model's own config says.

    Kernels without additive masks (flash attention, V-JEPA 2's eager function) hand over to SDPA where sizes must be
    added to the logits.
    """
    call = current_call()
    if call is not None and call.owed_bias is not None:
        attention_mask = call.owed_bias if attention_mask is None else attention_mask + call.owed_bias
    while call is not None:
        call.see(module, query, key, value, attention_mask)
        call = call.outer
    name = vars(module)[_CONFIG]._attn_implementation
    dense = "sdpa" if kwargs.get("softcap") is None else "eager"  # SDPA knows no cap of the logits
    if name == "flex_attention":  # would be compiled anew for every number of tokens
        name = dense
    takes_mask = name in ("eager", None) and not getattr(module.config, _DEAF)
    if attention_mask is not None and attention_mask.ndim == 4 and not takes_mask:
        name = dense
        one_for_every_key = attention_mask.shape[1:3] == (1, 1) and attention_mask.is_floating_point()
        if one_for_every_key and name == "sdpa":
            way = choose_way(query.device, query.dtype, key.shape[2])
            if way != "mask":
                bias, scale, dropout = attention_mask[:, 0, 0], kwargs.get("scaling"), kwargs.get("dropout", 0.0)
                y = proportional_attention(query, key, value, bias, scale, dropout, way)
                return y.transpose(1, 2).contiguous(), None
    return _implementation(module, name)(module, query, key, value, attention_mask, **kwargs)


def dense_mask(mask: Any) -> Tensor | None:
    """A mask as transformers makes it for any kernel, as SDPA takes it [B, H or 1, N or 1, N]; ``None`` hides nothing.

    Flash attention gets the tokens that are not padding [B, N], FlexAttention a ``BlockMask``.
    """
    if not isinstance(mask, Tensor):
        from torch.nn.attention.flex_attention import create_mask  # slow to import, and rarely wanted

        mask = create_mask(mask.mask_mod, *mask.shape, device=mask.kv_num_blocks.device)
        return None if mask.all() else mask
    return mask[:, None, None].bool() if mask.ndim == 2 else mask


def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, attention)


def _implementation(module: nn.Module, name: str | None) -> Callable[..., tuple[Tensor, Tensor | None]]:
    functions = _functions_of(module)
    assert functions is not None, "checked when the module was patched"
    return functions.ALL_ATTENTION_FUNCTIONS.get_interface(name or "eager", _eager(type(module), functions))


def _eager(attention_class: type[nn.Module], file: Any) -> Callable[..., Any]:
    """The eager function that a class of attention names; files with several kinds of attention have several."""
    named = inspect.unwrap(attention_class.forward).__code__.co_names
    return getattr(file, next((n for n in named if n.endswith(_EAGER) and hasattr(file, n)), _EAGER))


def _functions_of(attn: nn.Module) -> Any:
    """The file that defines the class of ``attn``, if it takes its attention function from the registry."""
    for cls in type(attn).__mro__:
        file = sys.modules.get(cls.__module__)
        if hasattr(file, "ALL_ATTENTION_FUNCTIONS") and hasattr(file, _EAGER):
            return file
    return None


def can_be_read(attn: nn.Module) -> bool:
    """Whether ``attn`` is an attention module that takes its attention function from the registry."""
    return "Attention" in type(attn).__name__ and hasattr(attn, "config") and _functions_of(attn) is not None


def is_pretrained(module: nn.Module) -> bool:
    """Whether ``module`` is a model of transformers; asked without importing the library."""
    library: Any = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(module, library.PreTrainedModel)
