"""Many questions in one sequence: what sees what, and what stands where."""

import torch

from tokred.train.vqa_packing import IGNORE, Grid, attention_bias, pack, pool, thin

QUESTIONS = [[([5, 6], [7, 2]), ([8], [9, 10, 2])], [([5], [7, 2])]]


def test_targets_are_the_next_words_of_answers():
    packed = pack(QUESTIONS)
    assert packed.ids.tolist() == [[5, 6, 7, 2, 8, 9, 10, 2], [5, 7, 2, 0, 0, 0, 0, 0]]
    assert packed.target.tolist() == [[IGNORE, 7, 2, IGNORE, 9, 10, 2, IGNORE], [7, 2] + [IGNORE] * 6]
    assert packed.segment.tolist() == [[1] * 4 + [2] * 4, [1] * 3 + [0] * 5]
    assert packed.offset.tolist()[0] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_question_sees_the_picture_and_itself_up_to_each_word():
    packed = pack(QUESTIONS)
    seen = attention_bias(torch.tensor([[True, True], [True, False]]), packed.segment)[:, 0] == 0
    assert seen[0, 0].nonzero().flatten().tolist() == [0]
    assert seen[0, 4].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    assert seen[0, 7].nonzero().flatten().tolist() == [0, 1, 6, 7]
    assert seen[1, 3].nonzero().flatten().tolist() == [0, 2, 3]  # the padded image token is not seen
    assert seen.any(-1).all()


def test_pooled_squares_stand_at_the_place_of_their_first_token():
    tokens, places = pool(torch.arange(16.0)[:, None], 4, 2)
    assert places.tolist() == [0, 2, 8, 10]
    assert tokens.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_drawn_tokens_are_so_many_of_each_tile_at_their_own_places_and_all_newlines():
    grids = [Grid(2, 2), Grid(4, 4, newline=True)]  # four tiles of 2 x 2
    shows = torch.zeros(5, 2, 2, dtype=torch.bool)
    shows[1:, 0, 1] = True
    newlines = [8, 13, 18, 23]
    assert thin(shows, grids, 1, 0).tolist() == sorted([5, 7, 15, 17, *newlines])
    assert thin(shows, grids, 4, 4).tolist() == list(range(24))
    drawn = [thin(shows, grids, 3, 2).tolist() for _ in range(20)]
    assert {len(places) for places in drawn} == {2 + 4 * 3 + 4}
    assert len({tuple(places) for places in drawn}) > 1
