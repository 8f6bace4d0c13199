"""Mosaics of easy-VQA pictures, drawn from a seed, with questions that need the right cell.

Mosaic number ``index`` of a split hangs on (seed, split, index) alone. Its grid is one of :data:`GRIDS`, each as
likely; its cells are pictures of the same split of easy-VQA, so that nothing of the test split is ever trained on.
Their shapes are made tiny (:mod:`tokred.data.tiny_shapes`): a thumbnail shows where they are and of what color.
Questions are drawn by kind, in these shares; one that cannot be asked, or was asked already, is drawn again:

- shape (4 of 17) and color (3): "what shape is in row 1 column 1?", "what color is the shape in row 2 column 3?"
- both (2): "what is in row 2 column 2?" -> "red circle"
- count (3): "how many circles are there?", "how many red shapes are there?" -> a digit
- where (3): "where is the blue circle?" -> "row 3 column 1", about what is there once
- presence (2): "is there a red shape in row 1?" -> "yes" or "no", each about half of the time

Rows are counted from the top, columns from the left. A dataset of mosaics has the single pictures, with the questions
about them, as its ``source``.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokred.data.easy_vqa import SPLITS, easy_vqa, easy_vqa_sample
from tokred.data.tiny_shapes import with_tiny_shapes
from tokred.data.vqa import Picture, Question, VQADataset
from tokred.errors import DataError

GRIDS = ((2, 2), (2, 3), (3, 2), (3, 3))
SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
# pictures and questions about each; 500 x 4 make the 2,000 test questions
SIZES = {"train": (40_000, 12), "test": (500, 4)}
# drawings of every picture among the single ones; the cells of mosaics are the first of them
DRAWINGS = {"train": 8, "test": 1}

_KINDS = ("shape",) * 4 + ("color",) * 3 + ("both",) * 2 + ("count",) * 3 + ("where",) * 3 + ("presence",) * 2


@lru_cache(maxsize=2)
def mosaic(split: str = "test", *, seed: int = 0) -> VQADataset:
    """Return the mosaics of one split; the test split is always the same 2,000 questions about 500 mosaics.

    Raises:
        DataError: an unknown split; for the training split also that the package easy-vqa is absent.

    >>> example = mosaic("test")[0]
    >>> example.image.shape[1] % 64, len(mosaic("test"))
    (0, 2000)
    """
    if split not in SPLITS:
        raise DataError(f"mosaic has no split {split!r}. It has: {', '.join(SPLITS)}.")
    plain = easy_vqa("train") if split == "train" else easy_vqa_sample("test")
    pictures, each = SIZES[split]
    composed = compose(with_tiny_shapes(plain, seed=seed), pictures, each, seed=seed, stream=SPLITS.index(split))
    singles = with_tiny_shapes(plain, seed=seed, times=DRAWINGS[split])
    return VQADataset(composed.pictures, composed.questions, singles)


def compose(source: VQADataset, pictures: int, questions: int, *, seed: int = 0, stream: int = 0) -> VQADataset:
    """Return so many mosaics of the pictures of ``source`` with so many different questions about each, where possible.

    Args:
        source: questions about pictures of one shape, of one size, as easy-VQA has them.
        stream: keeps splits of one seed apart.
    """
    labels = read_labels(source)
    layouts = [_Layout(labels, seed, stream, index) for index in range(pictures)]
    asked = [
        Question(index, text, answer)
        for index, layout in enumerate(layouts)
        for text, answer in layout.questions(questions)
    ]
    return VQADataset(_Mosaics(source.pictures, layouts), asked, source)


def read_labels(source: VQADataset) -> dict[int, tuple[str, str]]:
    """Return (color, shape) of every picture whose questions tell both.

    >>> read_labels(easy_vqa_sample())[0]
    ('red', 'triangle')
    """
    labels = {}
    for index in range(len(source.pictures)):
        told = set()
        for question in source.about(index):
            words = question.text.rstrip("?").split()
            negated = "not" in words or "no" in words
            if (question.answer == "yes") != negated or question.answer not in ("yes", "no"):
                told.update(words)
            told.add(question.answer)
        color, shape = told & set(COLORS), told & set(SHAPES)
        if len(color) == len(shape) == 1:
            labels[index] = (color.pop(), shape.pop())
    return labels


class _Mosaics(Sequence[Picture]):
    """Mosaics put together when asked for."""

    def __init__(self, sources: Sequence[Picture], layouts: "list[_Layout]"):
        self.sources, self.layouts = sources, layouts

    def __len__(self) -> int:
        return len(self.layouts)

    def __getitem__(self, index: Any) -> Any:
        layout = self.layouts[index]
        cells = torch.stack([self.sources[cell][0] for cell in layout.cells])  # [R * C, 3, H, W]
        return (_tile(cells, layout.rows, layout.columns),)


def _tile(cells: Tensor, rows: int, columns: int) -> Tensor:
    _, channels, H, W = cells.shape
    grid = cells.view(rows, columns, channels, H, W).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * H, columns * W)


class _Layout:
    """The cells of one mosaic, and what can be asked about them."""

    def __init__(self, labels: dict[int, tuple[str, str]], seed: int, stream: int, index: int):
        self.chance = np.random.default_rng((seed, stream, index))
        self.rows, self.columns = GRIDS[int(self.chance.integers(len(GRIDS)))]
        known = list(labels)
        self.cells = [known[i] for i in self.chance.integers(len(known), size=self.rows * self.columns)]
        self.labels = [labels[cell] for cell in self.cells]

    def questions(self, count: int) -> list[tuple[str, str]]:
        """Return up to ``count`` different questions with their answers."""
        kinds: dict[str, Callable[[], tuple[str, str] | None]] = {
            "shape": self._shape, "color": self._color, "both": self._both,
            "count": self._count, "where": self._where, "presence": self._presence,
        }  # fmt: skip
        found: dict[str, str] = {}
        for _ in range(20 * count):
            asked = kinds[self._one(_KINDS)]()
            if asked is not None:
                found.setdefault(*asked)
            if len(found) == count:
                break
        return list(found.items())

    def _one(self, choices: Sequence[str]) -> str:
        return choices[int(self.chance.integers(len(choices)))]

    def _cell(self) -> int:
        return int(self.chance.integers(len(self.cells)))

    def _place(self, cell: int) -> str:
        return f"row {cell // self.columns + 1} column {cell % self.columns + 1}"

    def _shape(self) -> tuple[str, str]:
        cell = self._cell()
        return f"what shape is in {self._place(cell)}?", self.labels[cell][1]

    def _color(self) -> tuple[str, str]:
        cell = self._cell()
        return f"what color is the shape in {self._place(cell)}?", self.labels[cell][0]

    def _both(self) -> tuple[str, str]:
        cell = self._cell()
        return f"what is in {self._place(cell)}?", " ".join(self.labels[cell])

    def _count(self) -> tuple[str, str]:
        if self.chance.random() < 0.5:
            shape = self._one(SHAPES)
            return f"how many {shape}s are there?", str(sum(own == shape for _, own in self.labels))
        # mostly a color that is there
        color = self._one([own for own, _ in self.labels] if self.chance.random() < 0.75 else COLORS)
        return f"how many {color} shapes are there?", str(sum(own == color for own, _ in self.labels))

    def _where(self) -> tuple[str, str] | None:
        color, shape = self.labels[cell := self._cell()]
        if self.labels.count((color, shape)) > 1:
            return None
        return f"where is the {color} {shape}?", self._place(cell)

    def _presence(self) -> tuple[str, str] | None:
        wanted = "yes" if self.chance.random() < 0.5 else "no"
        for _ in range(20):
            where, cells = self._part()
            color, shape = self._one(COLORS), self._one(SHAPES)
            if self.chance.random() < 0.75:  # something of this mosaic; for "no", of another row or column
                color, shape = self.labels[self._cell()]
            thing = _with_parts(color, shape)[int(self.chance.integers(3))]
            there = any(thing in _with_parts(*self.labels[cell]) for cell in cells)
            if there == (wanted == "yes"):
                name = f"{thing[0]} {thing[1] or 'shape'}".strip()
                return f"is there a {name} {where}".strip() + "?", wanted
        return None

    def _part(self) -> tuple[str, set[int]]:
        """Draw the whole mosaic, a row or a column: how a question names it, and its cells."""
        cells = range(len(self.cells))
        parts = [("", set(cells))]
        if self.rows > 1:
            parts += [(f"in row {r + 1}", {c for c in cells if c // self.columns == r}) for r in range(self.rows)]
        if self.columns > 1:
            parts += [(f"in column {k + 1}", {c for c in cells if c % self.columns == k}) for k in range(self.columns)]
        return parts[int(self.chance.integers(len(parts)))]


def _with_parts(color: str, shape: str) -> tuple[tuple[str, str], ...]:
    return (color, shape), (color, ""), ("", shape)
