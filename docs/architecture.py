"""Draws docs/images/architecture.svg: the parts of the package on the floors of tests/test_architecture.py.

Run it in the root of the repository: python -m docs.architecture. A test holds the picture against the real imports.
"""

import ast
import html
import textwrap
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "tokred"
PICTURE = Path(__file__).parent / "images" / "architecture.svg"
WIDTH, LEFT, GAP, LINE, LETTER = 1120, 60, 8, 15, 6.2
"""Pixels: of the picture, of the column of the arrow, between boxes, of a line, of a letter."""
ACROSS = 4


def draw(floors: Sequence[set[str]]) -> str:
    """The floors from top to bottom, each with its parts as boxes that say what they are for.

    Args:
        floors: names of the parts, from those that may import everything below to those that import nothing.
    """
    grounds, boxes, y = [], [], GAP
    for level, parts in enumerate(floors):
        top, names = y, sorted(parts)
        across = min(ACROSS, len(names))
        width = (WIDTH - LEFT - GAP) // across - GAP
        for start in range(0, len(names), across):
            row = names[start : start + across]
            texts = [textwrap.wrap(purpose(name), int((width - 20) / LETTER)) for name in row]
            height = 28 + LINE * max(map(len, texts))
            for column, (name, lines) in enumerate(zip(row, texts, strict=True)):
                boxes.append(_box(name, lines, LEFT + GAP + column * (width + GAP), y + GAP, width, height))
            y += height + GAP
        y += GAP
        shade = "#eef4f3" if level % 2 else "#dfebea"
        grounds.append(f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT}" height="{y - top}" fill="{shade}"/>')
    arrow = (
        f'<path d="M40 {GAP} V{y} m-7 -12 l7 12 l7 -12" fill="none" stroke="#00796b" stroke-width="2"/>\n'
        f'<text transform="translate(26 {y // 2}) rotate(-90)" text-anchor="middle" fill="#00796b">'
        "imports run downwards</text>"
    )
    size = f'width="{WIDTH}" height="{y + GAP}" viewBox="0 0 {WIDTH} {y + GAP}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    white = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, white, *grounds, *boxes, arrow, "</svg>"]) + "\n"


def purpose(part: str) -> str:
    """The first sentence of the docstring of a part of the package."""
    paths = (PACKAGE / f"{part}.py", PACKAGE / part / "__init__.py", PACKAGE / "__init__.py")
    path = next(path for path in paths if path.is_file())
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    return text.split(". ")[0].rstrip(".").replace("`", "")


def _box(name: str, lines: Sequence[str], x: int, y: int, width: int, height: int) -> str:
    said = "".join(
        f'<text x="{x + 10}" y="{y + 35 + i * LINE}" fill="#455a64">{html.escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return (
        f'<g id="{name}"><rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="white" stroke="#80cbc4"/>'
        f'<text x="{x + 10}" y="{y + 18}" font-weight="bold" fill="#004d40">{name}</text>{said}</g>'
    )


if __name__ == "__main__":
    from tests.test_architecture import FLOORS

    PICTURE.write_text(draw(FLOORS), encoding="utf-8")
