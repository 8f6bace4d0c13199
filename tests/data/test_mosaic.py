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


def expected(text, grid):
    """The answer, worked out from the words of the question."""
    words = text.rstrip("?").split()
    number = {word: int(words[words.index(word) + 1]) - 1 for word in ("row", "column") if word in words}
    flat = {(r, c): cell for r, row in enumerate(grid) for c, cell in enumerate(row)}
    if text.startswith("how many"):
        return str(sum(words[2].removesuffix("s") in cell for cell in flat.values()))
    if text.startswith("where"):
        return next(f"row {r + 1} column {c + 1}" for (r, c), cell in flat.items() if cell == (words[-2], words[-1]))
    if text.startswith("is there"):
        there = [cell for (r, c), cell in flat.items() if number.get("row", r) == r and number.get("column", c) == c]
        words = words[: words.index("in")] if "in" in words else words
        thing = {word for word in words[3:] if word != "shape"}
        return "yes" if any(thing <= set(cell) for cell in there) else "no"
    color, shape = flat[number["row"], number["column"]]
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
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "8f835e244367288f"


def test_all_grids_and_kinds_of_questions_come_up():
    data = mosaic("test")
    shapes = Counter(tuple(image.shape[1:]) for (image,) in (data.pictures[i] for i in range(200)))
    assert set(shapes) == {(64 * rows, 64 * columns) for rows, columns in GRIDS}
    starts = Counter(" ".join(question.text.split()[:2]) for question in data.questions)
    assert min(starts.values()) > 100
    assert set(starts) == {"what shape", "what color", "what is", "how many", "where is", "is there"}


def test_answers_are_short_and_yes_is_as_frequent_as_no():
    answers = Counter(question.answer for question in mosaic("test").questions)
    assert max(len(answer.split()) for answer in answers) == 4  # "row 1 column 2"
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
