"""Which row and column of tiles a visual token is in."""

import torch

from tokred.train.vqa_packing import Grid, pool
from tokred.train.vqa_places import WORDS, name_places


def said(names):
    return [{word for word, share in zip(WORDS, row, strict=True) if share} for row in names.tolist()]


def test_tokens_of_tiles_name_row_and_column_and_newlines_nothing():
    grids = [Grid(2, 2), Grid(4, 6, newline=True)]  # two rows and three columns of tiles of 2 x 2
    names = said(name_places(torch.arange(4 + 4 * 7), grids, 1))
    assert names[:4] == [{"top", "left"}, {"top", "right"}, {"bottom", "left"}, {"bottom", "right"}]
    first, last = names[4:11], names[-7:]
    assert first == [{"top", "left"}] * 2 + [{"top", "center"}] * 2 + [{"top", "right"}] * 2 + [set()]
    assert last[:2] == [{"bottom", "left"}] * 2


def test_one_row_has_no_name():
    names = said(name_places(torch.arange(4, 9), [Grid(2, 2), Grid(2, 4, newline=True)], 1))
    assert names == [{"left"}, {"left"}, {"right"}, {"right"}, set()]


def test_pooled_tokens_are_where_their_patches_were():
    grids = [Grid(4, 4), Grid(8, 4, newline=True)]
    features = torch.zeros(16 + 40, 1)
    tokens, places = pool(features, grids, [2, 4])
    names = said(name_places(places, grids, 4))
    assert len(tokens) == 4 + 2 * 2
    assert names == [{"top"}, {"top"}, {"bottom"}, {"bottom"}, {"top"}, set(), {"bottom"}, set()]
