"""Visual tokens that the language model must not see."""

import pytest
import torch

from tests.multimodal import recipe
from tokred.evaluate.hidden_tiles import HidingProcessor
from tokred.train.vqa_model import build_multimodal, build_processor


@pytest.mark.parametrize("hide", ["tiles", "thumbnail"])
def test_what_is_hidden_changes_nothing_and_what_is_seen_does(hide):
    spec = recipe("llava_next").task.model
    processor = build_processor(spec)
    model = build_multimodal(spec, processor).eval()
    image = torch.randint(256, (3, 16, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = HidingProcessor(processor, 16, hide)(images=image, text="<image>what?", return_tensors="pt")
    assert int((inputs["attention_mask"] == 0).sum()) == {"tiles": 4 * 9, "thumbnail": 16}[hide]
    logits = []
    for changed in (None, slice(1, None), slice(0, 1)):
        pixels = inputs["pixel_values"].clone()
        if changed is not None:
            pixels[:, changed] = 0
        with torch.no_grad():
            logits.append(model(**{**inputs, "pixel_values": pixels}).logits[0, -1])
    plain, without_tiles, without_thumbnail = logits
    same, other = (without_tiles, without_thumbnail) if hide == "tiles" else (without_thumbnail, without_tiles)
    torch.testing.assert_close(same, plain)
    assert not torch.allclose(other, plain)
