"""Layouts say where every visual token comes from, and lose nothing on the way from tokens to patches and back."""

from __future__ import annotations

import pytest
import torch

from tests.methods.views import LAYOUTS, random_view
from tokred.feature_view import EncoderAttention
from tokred.layout import VisualLayout, unpadded

every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@every_layout
def test_values_of_tokens_survive_the_way_to_patches_and_back(layout):
    values = torch.randn(layout.num_tokens, 3)
    back = layout.to_tokens(layout.to_patches(values), newline=0.0)
    assert torch.equal(back, values.masked_fill(layout.newline.unsqueeze(1), 0.0))


@every_layout
def test_every_patch_that_is_shown_has_one_token(layout):
    shown = layout.token[layout.shown]
    assert torch.equal(shown.sort().values, (~layout.newline).nonzero().squeeze(1))
    assert (layout.to_patches(torch.ones(layout.num_tokens)) == layout.shown).all()


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS.values() if layout.frames == 1])
def test_tokens_are_read_row_by_row_on_the_image_as_it_is_shown(layout):
    row, column, (height, width) = layout.place()
    placed = row >= 0
    assert torch.equal(row[placed] * width + column[placed], torch.arange(height * width))


def test_a_newline_ends_every_row_of_the_mosaic():
    layout = VisualLayout.tiled((4, 4), (2, 2), box=(1, 7, 0, 8))
    assert layout.num_tokens == 16 + 6 * (8 + 1)
    assert layout.newline.nonzero().squeeze(1).tolist() == [16 + 9 * n + 8 for n in range(6)]
    assert layout.partition[16:20].tolist() == [1, 1, 1, 1]
    assert layout.row[16:20].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("mosaic", "image", "box"),
    [
        ((48, 48), (480, 640), (6, 42, 0, 48)),
        ((48, 48), (640, 480), (0, 48, 6, 42)),
        ((48, 48), (500, 500), (0, 48, 0, 48)),
        ((12, 24), (300, 700), (1, 11, 0, 24)),
        ((16, 8), (640, 300), (0, 16, 0, 8)),
    ],
)
def test_the_padding_is_cut_off_on_both_sides(mosaic, image, box):
    assert unpadded(mosaic, image) == box


def test_an_image_of_exactly_the_ratio_keeps_its_rows():
    # the division may end just below the whole number; an odd number of padded rows leaves one too many
    for height in range(1, 49):
        top, bottom, *_ = unpadded((48, 48), (height * 7, 48 * 7))
        assert bottom - top in (height, height + 1)


def test_keys_of_patches_are_pooled_as_their_attention_is():
    k = torch.randn(2, 3, 1 + 8, 5)
    attention = EncoderAttention(k, k, 1.0, 1, True, pool=lambda x: x.unflatten(-1, (-1, 2)).mean(dim=-1))
    assert attention.class_row().shape == (2, 3, 4)
    pooled = k[:, :, 1:].mean(dim=1).unflatten(1, (4, 2)).mean(dim=2)
    torch.testing.assert_close(attention.patch_keys(), pooled)
    assert random_view(LAYOUTS["plain"]).patch_keys().shape == (1, 36, 8)
