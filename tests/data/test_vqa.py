"""Questions about pictures: examples, JSONL files, thumbnails."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tokred.data import Question, VQADataset, as_thumbnails, load_vqa, read_vqa
from tokred.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name, value in (("a", 10), ("b", 20)):
        Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def write(folder, *lines):
    path = folder / "questions.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_jsonl_file_gives_its_questions_in_order(folder):
    path = write(
        folder,
        {"image": "a.png", "question": "How dark?", "answer": "very"},
        "",
        {"image": ["a.png", "b.png"], "question": "which?", "answer": "b"},
        {"image": "a.png", "question": "again?", "answer": "yes"},
    )
    data = load_vqa(path)
    assert [example.answer for example in data] == ["very", "b", "yes"]
    assert data[0].question == "How dark?"
    assert data[0].image.shape == (3, 4, 6)
    assert data[0].image.dtype == torch.uint8
    assert [int(image.max()) for image in data[1].images] == [10, 20]
    assert len(data.pictures) == 2  # the same picture is kept once
    assert len(data.about(0)) == 2


def test_an_example_with_two_images_says_so(folder):
    data = read_vqa(write(folder, {"image": ["a.png", "b.png"], "question": "which?", "answer": "b"}))
    with pytest.raises(DataError, match="2 images"):
        _ = data[0].image


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "a list"),
        ({"image": "a.png", "answer": "x"}, "'question'"),
        ({"image": "a.png", "question": "x?", "answer": 3}, "'answer'.*3"),
        ({"image": "a.png", "question": " ", "answer": "x"}, "'question'"),
        ({"question": "x?", "answer": "x"}, "'image'.*None"),
        ({"image": [], "question": "x?", "answer": "x"}, "'image'"),
        ({"image": "c.png", "question": "x?", "answer": "x"}, r"c\.png does not exist"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(folder, line, complaint):
    path = write(folder, {"image": "a.png", "question": "x?", "answer": "y"}, line)
    with pytest.raises(DataError, match=rf"questions\.jsonl, line 2: .*{complaint}"):
        read_vqa(path)


def test_a_file_without_questions_is_refused(folder):
    with pytest.raises(DataError, match="no questions"):
        read_vqa(write(folder, ""))
    with pytest.raises(DataError, match="nowhere"):
        read_vqa(folder / "nowhere.jsonl")


def test_a_picture_that_cannot_be_read_is_named_when_asked_for(folder):
    (folder / "b.png").write_bytes(b"no picture")
    data = read_vqa(write(folder, {"image": "b.png", "question": "x?", "answer": "y"}))
    with pytest.raises(DataError, match=r"b\.png"):
        _ = data[0]


def test_thumbnails_keep_size_and_questions_but_no_detail():
    stripes = torch.zeros(3, 64, 96, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    data = VQADataset([(stripes,)], [Question(0, "what?", "stripes")])
    small = as_thumbnails(data, 16)
    assert small[0].question == "what?"
    assert small[0].image.shape == stripes.shape
    assert small[0].image.dtype == torch.uint8
    assert small[0].image.float().std() < 5
