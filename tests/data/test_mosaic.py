"""Mosaics: what a question says about its picture is so, and every draw can be repeated."""

import hashlib
from collections import Counter

import pytest
import torch

from tokred.data import easy_vqa_sample, mosaic
from tokred.data.mosaic import COLORS, GRIDS, SHAPES, compose, read_labels
from tokred.errors import DataError


@pytest.fixture(scope="module")
def source():
    return easy_vqa_sample()


@pytest.fixture(scope="module")
def cells(source):
    """(color, shape) of a picture by its bytes."""
    return {source.pictures[index][0].numpy().tobytes(): label for index, label in read_labels(source).items()}


def layout(image, cells):
    """Rows of (color, shape), read off the picture."""
    rows = [row.split(64, 2) for row in image.split(64, 1)]
    return [[cells[cell.contiguous().numpy().tobytes()] for cell in row] for row in rows]


def named(grid):
    """Every name of a cell with its (row, column)."""
    rows = {1: [""], 2: ["top", "bottom"], 3: ["top", "middle", "bottom"]}[len(grid)]
    columns = {1: [""], 2: ["left", "right"], 3: ["left", "center", "right"]}[len(grid[0])]
    places = {}
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            name = f"{row} {column}".strip()
            places["center" if name == "middle center" else name] = (r, c)
    return places


def expected(text, grid):
    """The answer, worked out from the words of the question."""
    words = text.rstrip("?").split()
    flat = [cell for row in grid for cell in row]
    places = named(grid)
    if text.startswith("how many"):
        return str(sum(words[2].removesuffix("s") in cell for cell in flat))
    if text.startswith("where"):
        return next(name for name, (r, c) in places.items() if grid[r][c] == (words[-2], words[-1]))
    if text.startswith("is there"):
        if words[-1] in ("row", "column"):
            keep = {(r, c) for name, (r, c) in places.items() if words[-2] in name.split()}
            if words[-2] == "center":
                keep = {(r, 1) for r in range(len(grid))}
            if words[-2] == "middle":
                keep = {(1, c) for c in range(len(grid[0]))}
            flat = [grid[r][c] for r, c in keep]
            words = words[: words.index("in")]
        thing = {word for word in words[3:] if word != "shape"}
        return "yes" if any(thing <= set(cell) for cell in flat) else "no"
    if "row" in words:
        r, c = int(words[words.index("row") + 1]) - 1, int(words[words.index("column") + 1]) - 1
    else:
        r, c = places[" ".join(words[words.index("in") + 2 : -1])]
    color, shape = grid[r][c]
    return {"what shape": shape, "what color": color, "what is": f"{color} {shape}"}[" ".join(words[:2])]


def test_every_answer_is_what_the_picture_shows(source, cells):
    data = compose(source, 150, 6, seed=5)
    for index in range(150):
        grid = layout(data.pictures[index][0], cells)
        assert (len(grid), len(grid[0])) in GRIDS
        for question in data.about(index):
            assert question.answer == expected(question.text, grid), question.text


def test_the_labels_of_a_picture_are_those_of_its_questions(source):
    labels = read_labels(source)
    assert len(labels) > 850
    for index, (color, shape) in list(labels.items())[:200]:
        for question in source.about(index):
            assert question.answer in (color, shape, "yes", "no")


def test_a_mosaic_hangs_on_seed_split_and_index_alone(source):
    few, many = compose(source, 3, 4, seed=1), compose(source, 9, 4, seed=1)
    assert few.questions == many.questions[: len(few)]
    assert all(torch.equal(few.pictures[i][0], many.pictures[i][0]) for i in range(3))
    assert compose(source, 3, 4, seed=2).questions != few.questions
    assert compose(source, 3, 4, seed=1, stream=1).questions != few.questions


def test_the_test_split_never_changes():
    data = mosaic("test")
    assert len(data) == 2000
    text = "\n".join(f"{question.picture} {question.text} {question.answer}" for question in data.questions)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "e585a0418f14fa37"


def test_all_grids_and_kinds_of_questions_come_up():
    data = mosaic("test")
    shapes = Counter(tuple(image.shape[1:]) for (image,) in (data.pictures[i] for i in range(200)))
    assert set(shapes) == {(64 * rows, 64 * columns) for rows, columns in GRIDS}
    starts = Counter(" ".join(question.text.split()[:2]) for question in data.questions)
    assert min(starts.values()) > 100
    assert set(starts) == {"what shape", "what color", "what is", "how many", "where is", "is there"}


def test_answers_are_short_and_yes_is_as_frequent_as_no():
    answers = Counter(question.answer for question in mosaic("test").questions)
    assert max(len(answer.split()) for answer in answers) <= 2
    assert 0.8 < answers["yes"] / answers["no"] < 1.25
    assert set(SHAPES) | set(COLORS) <= set(answers)


def test_no_question_is_asked_twice_about_a_mosaic():
    data = mosaic("test")
    for index in range(len(data.pictures)):
        asked = [question.text for question in data.about(index)]
        assert len(asked) == len(set(asked)) == 4


def test_an_unknown_split_is_named():
    with pytest.raises(DataError, match="validation"):
        mosaic("validation")
