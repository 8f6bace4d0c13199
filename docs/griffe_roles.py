"""Lets mkdocstrings show what docstrings write in another way: cross-references, and the section ``Example:``."""

from typing import Any

from docstrings import plain_roles
from griffe import Extension, Object


class Roles(Extension):
    """Rewrites every docstring on its way into the reference."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called by griffe for everything it finds."""
        if obj.docstring is not None:
            obj.docstring.value = plain_roles(obj.docstring.value).replace("\nExample:\n", "\nExamples:\n")
