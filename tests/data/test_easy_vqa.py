"""easy-VQA: the sample that ships, and the package where it is installed."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from tokred.data import easy_vqa as by_name
from tokred.data import load_vqa, vqa_names
from tokred.data.easy_vqa import SAMPLE, easy_vqa, easy_vqa_sample
from tokred.errors import DataError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of that name with two pictures, which may be found but not imported."""
    root = tmp_path / "easy_vqa"
    for split in ("train", "test"):
        folder = root / "data" / split
        (folder / "images").mkdir(parents=True)
        for index in range(2):
            Image.fromarray(np.full((64, 64, 4), 200 + index, np.uint8)).save(folder / "images" / f"{index}.png")
        asked = [["is there a circle?", "no", 0], ["what shape is present?", "triangle", 1], ["what?", "red", 1]]
        (folder / "questions.json").write_text(json.dumps(asked))
    (root / "__init__.py").write_text("raise ImportError('tokred reads files, it imports nothing')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return root


def test_the_sample_is_the_whole_test_split():
    sample = easy_vqa_sample()
    assert (len(sample), len(sample.pictures)) == (9673, 1000)
    assert Counter(question.answer in ("yes", "no") for question in sample.questions)[True] == 7136
    assert all(image.shape == (3, 64, 64) and image.dtype == torch.uint8 for (image,) in sample.pictures)


def test_the_sample_is_small_and_holds_no_pickle():
    assert SAMPLE.stat().st_size < 300_000
    with np.load(SAMPLE, allow_pickle=False) as file:
        assert sorted(file.files) == ["images", "questions"]


def test_questions_fit_their_pictures():
    sample = easy_vqa_sample()
    red = next(i for i, question in enumerate(sample.questions) if question.text == "what is the red shape?")
    image = sample[red].image.permute(1, 2, 0).reshape(-1, 3)
    assert (image == torch.tensor([255, 0, 0])).all(-1).sum() > 10


def test_names_lead_to_the_data(package):
    assert {"easy-vqa", "easy-vqa-sample", "mosaic"} <= set(vqa_names())
    assert len(load_vqa("easy-vqa-sample")) == 9673
    assert len(load_vqa("easy-vqa", "train")) == 3
    assert by_name is easy_vqa


def test_the_package_is_read_without_being_imported(package):
    data = easy_vqa("train")
    assert len(data) == 3
    assert data[1].question == "what shape is present?"
    assert data[1].answer == "triangle"
    assert data[1].image.unique().tolist() == [201]
    assert [question.text for question in data.about(1)] == ["what shape is present?", "what?"]


def test_without_the_package_the_sample_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install easy-vqa.*easy-vqa-sample"):
        easy_vqa("train")


def test_a_damaged_package_is_named(package):
    (package / "data" / "test" / "images" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"test.*force-reinstall"):
        easy_vqa("test")


@pytest.mark.parametrize("load", [easy_vqa, easy_vqa_sample])
def test_an_unknown_split_is_named(load):
    with pytest.raises(DataError, match="validation"):
        load("validation")


def test_an_unknown_name_is_refused_with_the_nearest_known_one():
    with pytest.raises(DataError, match="Did you mean 'mosaic'"):
        load_vqa("mosaics")
