"""What the pages of this site read in docstrings: text, attributes, and cross-references as people read them."""

import inspect
import re

_ROLE = re.compile(r":(?:class|func|meth|attr|mod):`(~?)([\w.]+)`")
_ATTRIBUTES = re.compile(r"^Attributes:\n((?:    .*\n?|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.*\n?(?:     .*\n?)*)", re.MULTILINE)


def plain_roles(text: str) -> str:
    """Write ``:class:`~tokred.ToMe``` as ```ToMe```, and leave everything else alone."""
    return _ROLE.sub(lambda found: f"`{found[2].rsplit('.', 1)[-1] if found[1] else found[2]}`", text)


def as_markdown(text: str) -> str:
    """:func:`plain_roles`, and code between single instead of double backticks."""
    return re.sub(r"``([^`]+)``", r"`\1`", plain_roles(text))


def description(of: type) -> str:
    """The docstring of a class up to its attributes, as Markdown."""
    return as_markdown(inspect.cleandoc(of.__doc__ or "").split("\nAttributes:\n")[0]).strip()


def attributes(of: type) -> dict[str, str]:
    """What a class and its bases say about their attributes; what is said last holds."""
    found: dict[str, str] = {}
    for base in reversed(of.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        if section := _ATTRIBUTES.search(text):
            for names, said in _ENTRY.findall(section[1]):
                found |= dict.fromkeys(names.split(", "), as_markdown(" ".join(said.split())))
    return found
