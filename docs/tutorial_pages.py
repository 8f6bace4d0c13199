"""Pages from docs/tutorials/*.py: cells of text (``# %% [markdown]``) become text, the others code."""

import re
from pathlib import Path

FOLDER = Path(__file__).parent / "tutorials"
_CELL = re.compile(r"^# %%(.*)$", re.MULTILINE)


def tutorials() -> list[Path]:
    """The files, in the order of their names."""
    return sorted(FOLDER.glob("*.py"))


def tutorial_page(path: Path) -> str:
    """The Markdown of a tutorial, as it would stand beside it."""
    start, *cells = _CELL.split(path.read_text(encoding="utf-8"))
    assert not start.strip(), f"{path.name}: the first line must begin a cell"
    parts = [_text(cell) if "[markdown]" in mark else f"```python\n{cell.strip()}\n```" for mark, cell in _pairs(cells)]
    return "\n\n".join([*parts, f"The whole file: [{path.name}]({path.name})."])


def _pairs(cells: list[str]) -> list[tuple[str, str]]:
    return list(zip(cells[::2], cells[1::2], strict=True))


def _text(cell: str) -> str:
    return "\n".join(re.sub(r"^# ?", "", line) for line in cell.strip().splitlines())
