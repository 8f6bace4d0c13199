"""Which row and column of tiles a visual token is in."""

import pytest
import torch

from tokred.train.vqa_packing import Grid
from tokred.train.vqa_places import asked_places, number_places, placing_loss


def test_tokens_of_tiles_have_a_row_and_a_column_and_newlines_and_thumbnails_none():
    grids = [Grid(2, 2), Grid(4, 6, newline=True)]  # two rows and three columns of tiles of 2 x 2
    numbers = number_places(torch.arange(4 + 4 * 7), grids).tolist()
    assert numbers[:4] == [[-1, -1]] * 4
    line = [[0, 0]] * 2 + [[0, 1]] * 2 + [[0, 2]] * 2 + [[-1, -1]]
    assert numbers[4:18] == line * 2
    assert numbers[-7:] == [[1, 0]] * 2 + [[1, 1]] * 2 + [[1, 2]] * 2 + [[-1, -1]]


def test_tokens_that_were_left_out_change_nothing():
    grids = [Grid(2, 2), Grid(4, 6, newline=True)]
    every = number_places(torch.arange(4 + 4 * 7), grids)
    some = torch.tensor([1, 5, 10, 19, 30])
    assert torch.equal(number_places(some, grids), every[some])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("what shape is in row 3 column 1?", (2, 0)),
        ("is there a circle in column 2?", (-1, 1)),
        ("how many rows are there?", (-1, -1)),
    ],
)
def test_the_place_that_a_question_names_is_read_from_its_words(text, place):
    assert asked_places(text) == place


def test_rows_are_told_by_the_first_half_of_the_channels_and_columns_by_the_second():
    digits = torch.eye(3).repeat(1, 2)
    numbers = torch.tensor([[0, 2], [1, 1], [-1, -1]])
    right = 50 * torch.cat([digits[[0, 1, 0], :3], digits[[2, 1, 0], 3:]], 1)
    assert placing_loss(right, numbers, digits) < 1e-6
    assert placing_loss(right.roll(3, 1), numbers, digits) == pytest.approx(50.0)
    assert placing_loss(torch.zeros(3, 6), numbers, digits) == pytest.approx(2 * torch.tensor(3.0).log().item())
