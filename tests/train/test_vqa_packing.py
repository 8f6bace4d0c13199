"""Many questions in one sequence: what sees what, and what stands where."""

import torch

from tokred.train.vqa_packing import IGNORE, Grid, attention_bias, pack, pool

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
    features = torch.arange(16.0)[:, None]
    tokens, places = pool(features, [Grid(4, 4)], [2])
    assert places.tolist() == [0, 2, 8, 10]
    assert tokens.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_newlines_stay_behind_pooled_rows():
    grids = [Grid(2, 2), Grid(2, 4, newline=True)]
    features = torch.arange(14.0)[:, None]
    tokens, places = pool(features, grids, [2, 2])
    assert places.tolist() == [0, 4, 6, 8]
    assert tokens[-1].item() == 8.0
    whole, everywhere = pool(features, grids, [1, 1])
    assert torch.equal(whole, features)
    assert everywhere.tolist() == list(range(14))
