"""Videos: their frames are partitions, and prompts with videos and images are cut as those with images are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokred
from tokred.methods.features import FeatureMethod

from . import zoo_multimodal as zoo
from .short_runs import greedy, kept_tokens, short_logits

QWEN = ("Qwen2VL", "Qwen2_5_VL")
CLIPS = ("LlavaNextVideo", "LlavaOnevision", "VideoLlava")
READ = (*QWEN, "LlavaNextVideo")  # the others have tokens that no patch stands behind


def with_video(name: str, model: Any) -> dict[str, Any]:
    """A prompt with an image and a video, and one with a video."""
    generator = torch.Generator().manual_seed(2)
    images = zoo.prompts(name, model, [1])
    if name in QWEN:
        grid = torch.tensor([[3, 4, 4], [2, 4, 6]])
        pixels = torch.randn(int(grid.prod(dim=1).sum()), 3 * 2 * 8 * 8, generator=generator)
        videos = {"pixel_values_videos": pixels, "video_grid_thw": grid}
    else:
        frames = 8 if name == "VideoLlava" else 3
        videos = {"pixel_values_videos": torch.randn(2, frames, 3, 48, 48, generator=generator)}
    with torch.no_grad():
        features = model.model.get_video_features(**videos, return_dict=True).pooler_output
    lengths = [row[..., 0].numel() for row in features]
    if len(lengths) != 2:  # a row a frame
        lengths = [sum(lengths) // 2] * 2
    first = [*images["input_ids"][0].tolist(), 93, *[zoo.VIDEO] * lengths[0], 94, 7, 8, 9]
    second = [1, 5, 93, *[zoo.VIDEO] * lengths[1], 94, 11, 12]
    longest = max(len(first), len(second))
    ids = torch.tensor([[zoo.PAD] * (longest - len(row)) + row for row in (first, second)])
    inputs = {**images, **videos, "input_ids": ids, "attention_mask": (ids != zoo.PAD).long()}
    if "mm_token_type_ids" in images:
        inputs["mm_token_type_ids"] = (ids == zoo.IMAGE).long() + 2 * (ids == zoo.VIDEO).long()
    return inputs


@pytest.mark.parametrize("name", [*QWEN, *CLIPS])
@pytest.mark.parametrize("method", [tokred.FoPru(keep=0.4), tokred.DivPrune(keep=0.4)])
def test_images_and_videos_in_one_batch(name: str, method: FeatureMethod):
    if method.reads_attention and name not in READ:
        return
    model = zoo.build(name)
    inputs = with_video(name, model)
    with torch.no_grad():
        before = model(**inputs).logits
        with tokred.patch(model, method.with_(keep=1.0)):
            assert torch.equal(model(**inputs).logits, before)
        with tokred.patch(model, method) as handle:
            logits = model(**inputs).logits
            sequences = model.generate(**inputs, max_new_tokens=3, do_sample=False)
            images = handle.trace.images
    kept = kept_tokens(handle)
    assert all(len(image.anchor) < len(image.slot) for image in images)
    for b, expected in enumerate(short_logits(model, inputs, kept)):
        torch.testing.assert_close(logits[b, kept[b]], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(sequences[:, -3:], greedy(model, inputs, kept, 3))
    layouts = [image.layout for image in images]
    if name in READ:
        frames = [layout.frames for layout in layouts if layout is not None]
        assert len(frames) == 3
        assert frames[1:] == ([3, 2] if name in QWEN else [3, 3])


@pytest.mark.parametrize("name", ["LlavaOnevision", "VideoLlava"])
def test_attention_is_not_read_where_frames_are_put_together_otherwise(name: str):
    model = zoo.build(name)
    inputs = with_video(name, model)
    refused = pytest.raises(tokred.UnsupportedModelError, match=r"do not fit the patches")
    with torch.no_grad(), tokred.patch(model, tokred.FoPru(keep=0.4)), refused:
        model(**inputs)
