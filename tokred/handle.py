"""What every patch gives back: a way out of the model again."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class WayOut:
    """Takes a patch out of a model. A context manager; leaving it removes the patch.

    Attributes:
        model: what was patched.
    """

    def __init__(self, model: Any, undo: list[Callable[[], object]]) -> None:
        self.model = model
        self._undo = undo

    @property
    def active(self) -> bool:
        """Whether the patch is still in the model."""
        return bool(self._undo)

    def remove(self) -> None:
        """Give the model back every bit as it was; may be called any number of times."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def _describe(self, methods: str) -> str:
        return f"<{methods} {'in' if self.active else 'removed from'} {type(self.model).__name__}>"
