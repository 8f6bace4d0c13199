"""Ask the picture: both answers stream, counts and pictures fit the method, visitors do not disturb each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from tokred.demo import ask, examples
from tokred.errors import ConfigError

PICTURE = examples.asked()[:1]
QUESTION = "what shape is present?"


def test_both_answers_grow_word_by_word_to_what_the_models_say():
    asked = ask.ask("llava-shapes", "uniform", 0.25, PICTURE, QUESTION)
    said = list(asked.answers())
    assert said[-1] == ("circle", "circle")
    for (one, other), (longer, longer_other) in pairwise(said):
        assert longer.startswith(one)
        assert longer_other.startswith(other)


@pytest.mark.parametrize(("method", "layers"), [("divprune", [64] * 6), ("fastv", [256, 256, 64, 64, 64, 64])])
def test_counts_and_pictures_show_what_is_kept_on_features_and_between_layers(method, layers):
    asked = ask.ask("llava-shapes", method, 0.25, PICTURE, QUESTION)
    list(asked.answers())
    assert asked.counts() == (layers, 256)
    (drawn,) = asked.overlays()
    dark = np.asarray(drawn).max(axis=2) < 90
    assert 0.70 < dark.mean() < 0.80


@pytest.mark.parametrize("positions", ask.POSITIONS.values())
def test_positions_are_those_that_were_asked_for(positions):
    asked = ask.ask("llava-shapes", "uniform", 0.25, PICTURE, QUESTION, positions)
    assert asked.handle.methods[0].positions == positions


def test_several_pictures_are_asked_about_at_once():
    asked = ask.ask("llava-shapes", "uniform", 0.25, examples.asked()[:2], QUESTION)
    list(asked.answers())
    assert asked.counts() == ([128] * 6, 512)
    assert len(asked.overlays()) == 2


def test_phases_and_the_cache_are_measured():
    asked = ask.ask("llava-shapes", "uniform", 0.25, PICTURE, QUESTION)
    phases = asked.time(rounds=1)
    assert phases.cache_bytes[1] < phases.cache_bytes[0] / 2
    said = ask.say_times(phases)
    assert "KV cache behind the prompt" in said
    assert said.count("ms") == 6


def test_counts_are_said_in_words():
    assert ask.say_counts([64] * 6, 256).startswith("**64 of 256** visual tokens are left in all 6 layers")
    assert "256, 64" in ask.say_counts([256, 64], 256)


@pytest.mark.parametrize("question", ["", " \n ", "why " * 200])
def test_no_question_and_a_novel_are_refused(question):
    with pytest.raises(ConfigError, match="Write a question of up to 400 letters"):
        ask.ask("llava-shapes", "uniform", 0.25, PICTURE, question)


def test_a_method_of_another_place_is_refused():
    with pytest.raises(ConfigError, match="'tome' is none of the methods of this tab"):
        ask.ask("llava-shapes", "tome", 0.25, PICTURE, QUESTION)


def test_an_error_in_the_model_ends_the_stream_and_is_seen():
    asked = ask.ask("llava-shapes", "uniform", 0.25, PICTURE, QUESTION)
    asked.inputs["pixel_values"] = asked.inputs["pixel_values"][..., :-3]
    with pytest.raises(ValueError, match=r"."):
        list(asked.answers())


def test_eight_visitors_at_once_share_no_patch():
    methods = ("uniform", "divprune", "fastv", "fopru", "vtc_cls", "visionzip", "hired", "sms_text")

    def answer(number: int) -> tuple[object, ...]:
        asked = ask.ask("llava-shapes", methods[number], 0.1, examples.asked()[number : number + 1], QUESTION)
        return list(asked.answers())[-1], asked.counts(), np.asarray(asked.overlays()[0]).tobytes()

    alone = [answer(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, range(8))) == alone
