"""The window around what a picture shows."""

import torch

from tests.multimodal import recipe
from tokred.train.vqa_focus import find_shown, find_window, focused_features
from tokred.train.vqa_model import build_multimodal, build_processor


def picture(top, left):
    pixels = torch.full((1, 3, 16, 16), 0.9)
    pixels[:, 0, top : top + 4, left : left + 4] = -1.0
    return pixels


def test_the_window_holds_what_differs():
    index, differs = find_window(torch.cat([picture(0, 0), picture(8, 12)]), patch=4, window=2)
    assert index.shape == (2, 4)
    assert index[0][differs[0]].tolist() == [0]
    assert index[1][differs[1]].tolist() == [2 * 4 + 3]


def test_grain_is_nothing_that_differs():
    grain = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.08
    assert not find_shown(0.9 + grain, patch=4).any()
    assert find_shown(picture(8, 12) + grain, patch=4).sum() == 1


def test_a_flat_picture_has_a_window_and_nothing_in_it():
    index, differs = find_window(torch.zeros(1, 3, 16, 16), patch=4, window=3)
    assert len(index[0].unique()) == 9
    assert not differs.any()


def test_the_token_is_the_mean_over_what_differs_and_the_tower_is_left_as_it_was():
    spec = recipe().task.model
    model = build_multimodal(spec, build_processor(spec)).eval().model
    pixels = torch.cat([picture(4, 4), picture(2, 9)])
    with torch.no_grad():
        whole = torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))
        token = focused_features(model, pixels, 4, 4)
        again = torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))
    assert token.shape == (2, 1, 16)
    torch.testing.assert_close(token[0, 0], whole[0, 5])
    torch.testing.assert_close(token[1, 0], whole[1, [2, 3, 6, 7]].mean(0))
    assert torch.equal(whole, again)
