"""What an image encoder knows before its classifier decides."""

from types import TracebackType
from typing import Any

from torch import Tensor, nn

from tokred.errors import UnsupportedModelError


class Penultimate:
    """While this context is open, what a model of timm feeds to its classifier; without one, what it returns.

    >>> import timm, torch
    >>> model = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    >>> with Penultimate(model) as features, torch.inference_mode():
    ...     logits = model(torch.randn(2, 3, 224, 224))
    ...     print(features.take().shape)
    torch.Size([2, 192])
    """

    def __init__(self, model: nn.Module):
        self._name = type(model).__name__
        found = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
        self._head = found[0] if isinstance(found, tuple) else found  # distilled models have two
        self._seen: list[Tensor] = []

    def take(self) -> Tensor:
        """Return the features [B, D] of the forward that ran since the last call.

        Raises:
            UnsupportedModelError: it did not run the classifier that it names, or not on one vector an image.
        """
        if len(self._seen) != 1 or self._seen[0].ndim != 2:
            raise UnsupportedModelError(
                f"{self._name} does not show the features of an image: its get_classifier() was given "
                f"{[tuple(x.shape) for x in self._seen] or 'nothing'}, one [B, D] was expected. Leave out the metrics "
                "that look at features."
            )
        return self._seen.pop()

    def __enter__(self) -> "Penultimate":
        def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._seen.append(arguments[0])

        self._hook = None if self._head is None else self._head.register_forward_pre_hook(note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hook is not None:
            self._hook.remove()
