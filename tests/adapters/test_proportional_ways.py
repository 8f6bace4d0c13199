"""Models whose attention the adapter computes can take any way to proportional attention."""

import pytest
import torch

import tokred
from tokred.ops import proportional

from . import zoo_huggingface, zoo_open_clip


@pytest.mark.parametrize("way", ["keys", "values"])
@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_another_way_gives_the_same_features(monkeypatch, library, way):
    if library == "transformers":
        model = zoo_huggingface.build("clip").eval()
        images = zoo_huggingface.images("clip")["pixel_values"]
    else:
        model, images = zoo_open_clip.build("class-token").visual, zoo_open_clip.images()
    taken = []
    run = proportional._WAYS[way]
    monkeypatch.setitem(proportional._WAYS, way, lambda *arguments: taken.append(way) or run(*arguments))

    def features():
        y = model(images)
        return y if isinstance(y, torch.Tensor) else y[0]

    with tokred.patch(model, tokred.ToMe(r=6)), torch.inference_mode():
        wanted = features()
        assert not taken
        monkeypatch.setattr(proportional, "CHOICE", {("cpu", torch.float32): ((10_000, way),)})
        found = features()
    assert len(taken) == 2, "of three blocks, those behind the first merge"
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
