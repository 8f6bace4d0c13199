"""``patch`` and ``unpatch``: put a method into a model, prove that it sits right, and take it out again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from tokred.adapters import Tower, find_tower
from tokred.adapters.base import device_of
from tokred.adapters.site import Reduction, Site
from tokred.cost import Cost
from tokred.errors import AlreadyPatchedError, UnsupportedModelError
from tokred.handle import WayOut
from tokred.methods.base import Method
from tokred.methods.registry import AnyMethod
from tokred.multimodal import MultimodalHandle
from tokred.schedule import Schedule
from tokred.state import TokenState
from tokred.trace import Trace

_ATTRIBUTE = "_tokred_handle"


class Handle(WayOut):
    """What :func:`patch` returns: takes the patch out again, and holds the trace of the last forward.

    A context manager; leaving it removes the patch. ``remove`` may be called any number of times.
    """

    def __init__(self, model: nn.Module, tower: Tower, reduction: Reduction, undo: list[Callable[[], object]]) -> None:
        super().__init__(model, undo)
        self.tower = tower
        self.reduction = reduction

    @property
    def method(self) -> Method:
        """The method in the model."""
        return self.reduction.method

    @property
    def modules(self) -> nn.ModuleDict | None:
        """The learnable parts of the method, by layer; they are not registered in the model."""
        return self.reduction.modules

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the learnable parts."""
        if self.modules is not None:
            self.modules.to(*args, **kwargs)
        return self

    @property
    def schedule(self) -> Schedule:
        """The schedule in force at the model's nominal input size."""
        return self.reduction.plan(self.tower.shape.num_tokens)

    @property
    def cost(self) -> Cost:
        """What a forward pass of the patched model costs."""
        return self.method.cost(self.tower.shape, self.schedule)

    @property
    def trace(self) -> Trace:
        """What the last forward did.

        Raises:
            ValueError: the model was patched without ``trace=True``, or no forward has run since, or its images were
                packed into one sequence and differed in their numbers of tokens.
        """
        if not self.reduction.trace:
            raise ValueError("This patch keeps no trace; use tokred.patch(model, method, trace=True).")
        last = self.reduction.last
        if last is None:
            raise ValueError("No forward has run since the model was patched.")
        if isinstance(last, tuple):
            counts = ", ".join(str(state.num_initial) for state in last)
            raise ValueError(
                f"The last forward had images of different numbers of tokens ({counts}), and a trace is one table for "
                "all images. Run them one by one to look at their traces."
            )
        return Trace(last, self.tower.shape)

    def _forget(self) -> None:
        vars(self.tower.module).pop(_ATTRIBUTE, None)

    def __repr__(self) -> str:
        return self._describe(repr(self.method))


def patch(
    model: nn.Module,
    *methods: AnyMethod,
    tower: Literal["vision", "text"] = "vision",
    trace: bool = False,
    verify: bool = True,
    full_length: bool = False,
) -> Any:
    """Put token reduction methods into a model, in place.

    Args:
        model: a supported model, or one that contains exactly one (DDP, compiled and PEFT wrappers are looked into).
        methods: what to put in, such as ``tokred.ToMe(r=13)``. Multimodal models take up to one method for each place:
            inside the image encoder, on the features (``tokred.FoPru(keep=0.25)``), and between the layers of the
            language model (``tokred.FastV()``).
        tower: which encoder, of a model with two. In a text tower the end-of-text token is protected, and features have
            their full length, so that what reads the end of the text finds it where it was. Tokens behind the end take
            part in matching.
        trace: keep, for the last forward, where every original patch went (``handle.trace``).
        verify: check the patched model on a tiny input: unchanged output when nothing is reduced, and the number of
            tokens that the schedule says. Costs three forward passes of one image.
        full_length: features leave the encoder with one row for every original token: merged tokens are copied back
            to all of their places, dropped ones keep the features they had when they were dropped. By default only
            where the model around the encoder needs it (segmentation, depth), and between blocks.

    Returns:
        The :class:`Handle` that takes the patch out again; for methods on features or between layers a
        :class:`~tokred.multimodal.MultimodalHandle`, whose trace is always kept.

    Raises:
        UnsupportedModelError: no adapter fits, or the check failed; the model is as before.
        AlreadyPatchedError: there is a patch in the model already.
        ValueError: several methods for one place.

    Example:
        >>> import timm, torch, tokred
        >>> model = timm.create_model("deit_tiny_patch16_224", depth=3).eval()
        >>> with tokred.patch(model, tokred.ToMe(r=13)) as handle:
        ...     logits = model(torch.randn(1, 3, 224, 224))
        >>> handle.schedule.tokens(197)
        (184, 171, 158)
    """
    places = [_place_of(method) for method in methods]
    if not methods or len(set(places)) != len(places):
        raise ValueError(
            f"patch takes one method for each place; found {', '.join(places) or 'none'}. Methods at one place do not "
            "add up: choose one of them."
        )
    if places != ["encoder"]:
        return _patch_multimodal(model, methods, tower=tower, trace=trace, verify=verify)
    (method,) = methods
    assert isinstance(method, Method)
    bare = unwrap(model)
    found = find_tower(bare, tower)
    _require_patchable(found)
    if method.replaces_head and not found.classifies:
        raise UnsupportedModelError(
            f"{type(method).__name__} brings a classifier of its own, which can take the place of that of timm models; "
            f"{type(found.module).__name__} is one of {found.family}. Leave classes out to keep the model's own."
        )
    reduction = Reduction(
        method, found.shape, padding_in_mask=found.padding_in_mask, trace=trace, full_length=full_length
    )
    if reduction.modules:
        reduction.modules.to(device_of(found.module)).eval()
        _warn_if_untrained(method)
    before = found.evaluate() if verify else None
    handle = Handle(bare, found, reduction, [])
    try:
        _install(handle)
        if before is not None:
            _verify(handle, before)
    except BaseException:
        handle.remove()
        raise
    return handle


def _place_of(method: AnyMethod) -> str:
    if not isinstance(method, AnyMethod):
        raise TypeError(f"{method!r} is not a method; use for example tokred.ToMe(r=8).")
    return method.place


def _warn_if_untrained(method: Method) -> None:
    if getattr(method, "weights", None) is None:
        warnings.warn(
            f"The learnable parts of {type(method).__name__} are untrained. Give learned ones with weights=..., or "
            "train handle.modules and keep them with safetensors.torch.save_file(handle.modules.state_dict(), path).",
            stacklevel=3,
        )


def _patch_multimodal(model: nn.Module, methods: tuple[AnyMethod, ...], **options: Any) -> MultimodalHandle:
    bare = unwrap(model)
    if options["tower"] != "vision":
        raise ValueError("tower='text' is for methods inside an encoder; leave it out for methods on visual tokens.")
    inside = [method for method in methods if method.place == "encoder"]
    encoder = patch(bare, *inside, **options) if inside else None
    handle = MultimodalHandle(model, methods, encoder)
    try:
        handle.install(bare)
    except BaseException:
        handle.remove()
        raise
    return handle


def unpatch(model: nn.Module) -> None:
    """Take the patch out of a model, if there is one."""
    for module in list(unwrap(model).modules()):
        handle = vars(module).get(_ATTRIBUTE)
        if handle is not None:
            handle.remove()


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside data-parallel, compiled and PEFT wrappers.

    Raises:
        UnsupportedModelError: the wrapper replicates or moves modules in a way that a patch does not survive.
    """
    if isinstance(model, nn.DataParallel):
        raise UnsupportedModelError(
            "nn.DataParallel copies the model in every forward and the copies would share one patch; "
            "use DistributedDataParallel, or patch the module inside for a single device."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    if "_orig_mod" in vars(model).get("_modules", {}):
        return unwrap(model.get_submodule("_orig_mod"))
    if hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
        return unwrap(model.get_base_model())  # type: ignore[operator]
    return model


def _require_patchable(tower: Tower) -> None:
    for block in tower.blocks:
        site = getattr(vars(block).get("forward"), "__self__", None)
        if isinstance(site, Site):
            raise AlreadyPatchedError(
                f"{type(tower.module).__name__} is patched already with {site.reduction.method!r}; "
                "remove that patch first (handle.remove() or tokred.unpatch(model))."
            )
    for index, block in enumerate(tower.blocks):
        if hasattr(block, "_hf_hook"):
            raise UnsupportedModelError(
                f"Block {index} is dispatched by accelerate (device_map), which owns its forward. "
                "Load the model on one device, or patch it before it is dispatched."
            )
        if "forward" in vars(block):
            raise UnsupportedModelError(
                f"Something else has replaced the forward of block {index} ({block.forward!r}); "
                "remove that first, or patch before it."
            )
    first = next(tower.module.parameters(), None)
    if first is not None and first.device.type == "meta":
        raise UnsupportedModelError(
            "The parameters are on the meta device, which holds no values; load the weights first."
        )


def _install(handle: Handle) -> None:
    tower, reduction, undo = handle.tower, handle.reduction, handle._undo
    vars(tower.module)[_ATTRIBUTE] = handle
    undo.append(handle._forget)
    first = min(reduction.first, len(tower.blocks) - 1) if reduction.trace else reduction.first
    for layer in range(first, len(tower.blocks)):  # a trace needs a site, even where nothing is reduced
        site = tower.site(tower.blocks[layer], tower.parts[layer], layer, reduction)
        undo.append(site.remove)
        undo += [hook.remove for hook in site.install()]
    undo += tower.install(reduction)


def _verify(handle: Handle, before: Tensor) -> None:
    """Prove the patch on a tiny input: nothing changes while nothing is reduced, and the counts are the schedule's."""
    tower, reduction = handle.tower, handle.reduction
    reduction.idle = True
    try:
        idle = tower.evaluate()
    finally:
        reduction.idle = False
    scale = float(before.float().abs().max()) or 1.0
    error = float((idle.float() - before.float()).abs().max()) / scale
    limit = 1e-4 if before.dtype in (torch.float32, torch.float64) else 5e-2
    if not error <= limit:
        raise UnsupportedModelError(
            f"{type(tower.module).__name__}: with nothing reduced the patched blocks change the output by {error:.1e} "
            f"of its largest value (allowed {limit:.0e}), so they are not built as the {tower.family} adapter thinks. "
            "The model was left as it was; please report it with the model's name and the library's version."
        )
    wanted = list(handle.schedule.tokens(tower.shape.num_tokens))
    traced, reduction.trace = reduction.trace, True
    try:
        tower.evaluate()
        last = reduction.last
        found = Trace(last, tower.shape).tokens_per_layer if isinstance(last, TokenState) else wanted
    finally:
        reduction.trace, reduction.last = traced, None
    bounded = all(f <= w for f, w in zip(found, wanted, strict=True)) if handle.method.adaptive else found == wanted
    if not bounded:
        raise UnsupportedModelError(
            f"{type(tower.module).__name__}: the schedule says {wanted} tokens, the patched model has {found}. "
            "The model was left as it was; please report it."
        )


__all__: list[Any] = ["Handle", "patch", "unpatch", "unwrap"]
