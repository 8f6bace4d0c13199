"""Time of a multimodal model by phase: encoding images, reduction, prefill, decoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tokred.adapters.multimodal import find_multimodal
from tokred.adapters.multimodal_features import give_choices
from tokred.bench.memory import peak_memory
from tokred.bench.timing import Comparison, compare, wait

DECODED = 8
"""Tokens that the timed decoding writes."""


@dataclass(frozen=True)
class Phases:
    """What one batch of prompts costs, patched and unpatched in turn.

    Attributes:
        vision: encoding the images; the same for both but where a method acts inside the encoder.
        prefill: from the features of the images to the logits of the first word, what the method does included.
        decode: writing :data:`DECODED` words behind the prompt.
        reduction: median seconds that the method and its adapter take in a prefill.
        cache_bytes: keys and values of the prompts, unpatched and patched.
        peak_bytes: memory that a prefill needs, unpatched and patched.
    """

    vision: Comparison
    prefill: Comparison
    decode: Comparison
    reduction: float
    cache_bytes: tuple[int, int]
    peak_bytes: tuple[int, int]


@torch.inference_mode()
def time_phases(
    plain: Any,
    patched: Any,
    handle: Any,
    inputs: Mapping[str, Any],
    *,
    rounds: int = 10,
    device: torch.device | str = "cpu",
    report: Callable[[float], None] = lambda share: None,
) -> Phases:
    """Time the phases of one batch.

    Args:
        plain: the unpatched model.
        patched: a patched copy of it.
        handle: of the patch; ``None`` if the copy is unpatched, too.
        inputs: of the model, from its processor.
        rounds: timed pairs a phase.
        device: where they run.
        report: called with the share that is done.
    """
    first, second = _Prompts(plain, None, inputs), _Prompts(patched, handle, inputs)
    settings: dict[str, Any] = {"rounds": rounds, "device": device}
    is_inside = handle is not None and handle.encoder is not None
    encode = second.encode if is_inside else first.encode
    vision = compare(first.encode, encode, **settings, report=lambda s: report(0.2 * s))
    clock = _Clock(torch.device(device))
    with clock.watching(handle):
        prefill = compare(first.prefill, clock.each(second.prefill), **settings, report=lambda s: report(0.2 + 0.5 * s))
    decode = compare(first.decode, second.decode, **settings, report=lambda s: report(0.7 + 0.3 * s))
    return Phases(
        vision,
        prefill,
        decode,
        reduction=median(clock.calls),
        cache_bytes=(first.cache_bytes(), second.cache_bytes()),
        peak_bytes=(peak_memory(first.prefill, device), peak_memory(second.prefill, device)),
    )


class _Prompts:
    """One model with one batch of prompts whose images are encoded."""

    def __init__(self, model: Any, handle: Any, inputs: Mapping[str, Any]) -> None:
        self.model, self.handle = model, handle
        encode = find_multimodal(model).inner.get_image_features
        self.pixels = {k: v for k, v in inputs.items() if k.startswith(("pixel", "image_"))}
        self._encode = partial(encode, **self.pixels, return_dict=True)
        self._seen: list[tuple[Any, ...]] = []
        features = None if handle is None else handle.features
        if features is not None:
            own = features.choose
            features.choose = lambda *arguments: (self._seen.append(arguments), own(*arguments))[1]
            try:
                self.features = self._encode()
            finally:
                del features.choose
        else:
            self.features = self._encode()
        self.text = {k: v for k, v in inputs.items() if not k.startswith("pixel")}
        self.output = self.prefill()
        self.prompt = self.output.past_key_values.get_seq_length()

    def encode(self) -> Any:
        """Encode the images."""
        return self._encode()

    def prefill(self) -> Any:
        """Choose among the features and read the prompts."""
        if self._seen:
            give_choices(self.features, self.handle.features.choose(*self._seen[0]))
        return self.model(**self.text, mm_encoder_outputs={"image": self.features}, use_cache=True, logits_to_keep=1)

    def decode(self) -> None:
        """Write words behind the prompts, and forget them again."""
        cache, word = self.output.past_key_values, self.text["input_ids"][:, -1:]
        mask = self.text["attention_mask"]
        for _ in range(DECODED):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            self.model(input_ids=word, attention_mask=mask, past_key_values=cache)
        cache.crop(-DECODED)

    def cache_bytes(self) -> int:
        """Bytes of the keys and values of the prompts."""
        layers = self.output.past_key_values.layers
        return sum(_bytes(layer.keys) + _bytes(layer.values) for layer in layers)


class _Clock:
    """Takes the time of the methods that the parts of a patch name as their ``work``.

    Attributes:
        calls: seconds of work in every call of what :meth:`each` gave.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.calls: list[float] = []
        self._now = 0.0

    @contextmanager
    def watching(self, handle: Any) -> Iterator[None]:
        """Replace these methods on the instances."""
        with ExitStack() as stack:
            for part in () if handle is None else (handle.features, handle.language, handle.language.dropping):
                for name in () if part is None else part.work:
                    setattr(part, name, partial(self._work, getattr(part, name)))
                    stack.callback(vars(part).pop, name)
            yield

    def each(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """``function``, every call of which counts for itself."""

        def counted() -> Any:
            self._now = 0.0
            result = function()
            self.calls.append(self._now)
            return result

        return counted

    def _work(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        wait(self.device)
        started = time.perf_counter()
        result = own(*args, **kwargs)
        wait(self.device)
        self._now += time.perf_counter() - started
        return result


def _bytes(values: Tensor | None) -> int:
    return 0 if values is None else values.numel() * values.element_size()
