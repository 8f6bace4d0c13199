"""Coarse to fine: any first part of the row draws, bits are counted, the suggestion keeps its word."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tokred.demo import coarse_to_fine, examples
from tokred.tokenizer_assets import list_tokenizers


@pytest.fixture(scope="module")
def written() -> coarse_to_fine.Written:
    return coarse_to_fine.write("flextok-shapes", examples.shapes()[0])


@pytest.mark.parametrize("name", list_tokenizers())
def test_every_shipped_tokenizer_writes_and_draws_pictures_of_any_size(name):
    photo = Image.radial_gradient("L").convert("RGB").resize((300, 120))
    for picture in (photo, examples.clothes()[0]):
        written = coarse_to_fine.write(name, picture)
        drawn = coarse_to_fine.draw(written, 1)
        assert drawn.estimate.size == drawn.picture.size
        assert min(drawn.picture.size) >= 256
        assert 0 < drawn.error < 1


def test_more_tokens_take_more_bits_and_come_nearer(written):
    few, many = coarse_to_fine.draw(written, 1), coarse_to_fine.draw(written, written.most)
    assert many.bits == pytest.approx(written.most * few.bits)
    assert many.error < few.error


def test_the_same_tokens_draw_the_same_picture(written):
    first, again = (np.asarray(coarse_to_fine.draw(written, 8).picture) for _ in range(2))
    assert np.array_equal(first, again)


def test_counts_beyond_the_row_are_clamped(written):
    assert coarse_to_fine.draw(written, 0).bits == coarse_to_fine.draw(written, 1).bits
    assert coarse_to_fine.draw(written, 10**6).bits == coarse_to_fine.draw(written, written.most).bits


def test_the_strip_has_the_original_and_all_powers_of_two(written):
    captions = [caption for _, caption in coarse_to_fine.strip(written)]
    assert captions == ["original", "1 token", "2 tokens", "4 tokens", "8 tokens", "16 tokens", "32 tokens"]


def test_the_suggestion_reaches_the_error_or_says_that_nothing_does(written):
    drawn = coarse_to_fine.draw_for(written, 0.12)
    assert drawn.error <= 0.12
    assert coarse_to_fine.draw(written, drawn.tokens).error == pytest.approx(drawn.error, abs=1e-4)
    assert f"needs **{drawn.tokens}**" in coarse_to_fine.say_suggestion(0.12, drawn, written.most)
    drawn = coarse_to_fine.draw_for(written, 0.001)
    assert drawn.tokens == written.most
    assert coarse_to_fine.say_suggestion(0.001, drawn, written.most).startswith("Not even all 32 tokens")


def test_karl_suggests_fewer_tokens_for_larger_errors_and_says_what_it_does_not_reach():
    written = coarse_to_fine.write("karl-shapes", examples.shapes()[0])
    few, many = coarse_to_fine.draw_for(written, 0.12), coarse_to_fine.draw_for(written, 0.05)
    assert 0 < few.tokens < many.tokens < written.most
    assert many.error < few.error
    assert many.bits > few.bits
    said = coarse_to_fine.say_suggestion(many.error - 0.01, many, written.most)
    assert f"suggests **{many.tokens}** tokens; here they do not reach it" in said


def test_eight_visitors_at_once_get_what_they_get_alone():
    def draw(number: int) -> bytes:
        name = list_tokenizers()[number % len(list_tokenizers())]
        written = coarse_to_fine.write(name, examples.shapes()[number])
        return np.asarray(coarse_to_fine.draw(written, number + 1).picture).tobytes()

    alone = [draw(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(draw, range(8))) == alone
