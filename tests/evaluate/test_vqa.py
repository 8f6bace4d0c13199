"""Exact match, counted on a model whose answers are known."""

import math

import pytest
import torch

from tests.multimodal import recipe
from tokred.data import Question, VQADataset
from tokred.evaluate.vqa import ExactMatch, exact_match, prompt_of
from tokred.train.vqa_model import build_multimodal, build_processor


@pytest.fixture(scope="module", params=["llava", "llava_next"])
def parts(request):
    """An untrained model, its processor, and ten questions of different lengths."""
    torch.manual_seed(0)
    spec = recipe(request.param).task.model
    processor = build_processor(spec)
    model = build_multimodal(spec, processor).eval()
    sizes = [(16, 16)] if request.param == "llava" else [(16, 32), (32, 32), (32, 16)]
    pictures = [(torch.randint(256, (3, *sizes[i % len(sizes)])).to(torch.uint8),) for i in range(5)]
    texts = ("what is the shape in the image?", "what?")
    return model, processor, VQADataset(pictures, [Question(i // 2, texts[i % 2], "x") for i in range(10)])


def test_answers_do_not_depend_on_the_batch(parts):
    model, processor, data = parts
    alone = exact_match(model, processor, data, 1)
    assert alone.total == 10
    assert exact_match(model, processor, data, 4).answers == alone.answers
    assert exact_match(model, processor, data, 10).answers == alone.answers


def test_a_right_answer_is_counted_whatever_its_case_and_spaces(parts):
    model, processor, data = parts
    answers = exact_match(model, processor, data, 10).answers
    told = [Question(q.picture, q.text, f" {a.upper()} ") for q, a in zip(data.questions, answers, strict=True)]
    told[3] = Question(told[3].picture, told[3].text, "something else")
    found = exact_match(model, processor, VQADataset(data.pictures, told), 10)
    assert (found.correct, found.total) == (9, 10)
    assert found.percent == pytest.approx(90.0)


def test_a_limit_asks_the_first_ones(parts):
    model, processor, data = parts
    counted = []
    few = exact_match(model, processor, data, 2, limit=3, report=counted.append)
    assert few.answers == exact_match(model, processor, data, 10).answers[:3]
    assert counted == [2, 3]


def test_the_mode_of_the_model_is_kept(parts):
    model, processor, data = parts
    model.train()
    exact_match(model, processor, data, 2, limit=1)
    assert model.training
    model.eval()


def test_the_prompt_is_that_of_the_chat_template(parts):
    _, processor, data = parts
    assert prompt_of(processor, data[1]) == "<image> question: what? answer:"


def test_nothing_asked_is_no_percentage():
    assert math.isnan(ExactMatch(0, 0).percent)
    assert str(ExactMatch(1, 4)) == "25.00 % (1 of 4)"
