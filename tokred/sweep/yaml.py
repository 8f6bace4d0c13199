"""YAML that remembers on which line every key stood, so that a complaint can name the place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tokred.errors import ConfigError

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """What a file says, and where.

    Attributes:
        content: plain data.
        name: the file, or "command line".
        lines: line of every key and list entry, counted from 1.
    """

    content: Any
    name: str = "command line"
    lines: Mapping[Place, int] = field(default_factory=dict)

    def place(self, *path: str | int) -> str:
        """``file, line 7, methods[2].r``, as far as it is known."""
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)
        dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        return ", ".join(part for part in (self.name, f"line {line}" if line else "", dotted) if part)


def read_yaml(path: str | Path) -> Document:
    """Read one YAML file.

    Raises:
        ConfigError: it cannot be read, is not YAML, or has a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}.") from error
    lines: dict[Place, int] = {}
    if node is not None:
        _collect(node, (), lines, str(path))
    return Document(content, str(path), lines)


def _collect(node: yaml.Node, path: Place, lines: dict[Place, int], name: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, key.value)
            line = key.start_mark.line + 1
            if inner in lines:
                raise ConfigError(
                    f"{name}, line {line}: the key {key.value!r} is there twice, first on line {lines[inner]}."
                )
            lines[inner] = line
            _collect(value, inner, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[*path, index] = value.start_mark.line + 1
            _collect(value, (*path, index), lines, name)
