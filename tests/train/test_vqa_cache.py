"""Tiles that a frozen tower has seen before."""

import torch

from tests.multimodal import recipe
from tokred.train.vqa_cache import TileCache
from tokred.train.vqa_model import build_multimodal, build_processor


def pictures():
    """Three mosaics of four kinds of tiles."""
    tiles = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first = torch.cat([tiles[0], tiles[1]], 2)
    second = torch.cat([tiles[1], tiles[2]], 1)
    return [first, second, torch.cat([torch.cat([tiles[3], tiles[0]], 2), first], 1)]


def test_kept_features_are_those_that_the_model_computes_and_each_tile_is_seen_once():
    spec = recipe("llava_next").task.model
    processor = build_processor(spec)
    model = build_multimodal(spec, processor).eval().model
    inputs = processor.image_processor(images=pictures(), return_tensors="pt")
    own = [pixels[:count] for pixels, count in zip(inputs["pixel_values"], (3, 3, 5), strict=True)]
    seen = []
    cache = TileCache()
    with torch.no_grad():
        expected = model.get_image_features(**inputs, return_dict=True).pooler_output
        model.vision_tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        for _ in range(2):
            found = cache.features(model, own, inputs["image_sizes"])
            for mine, right in zip(found, expected, strict=True):
                torch.testing.assert_close(mine, right, atol=0.02, rtol=0.02)  # kept in bfloat16
    assert seen == [11, 3]  # then, the thumbnails alone


def test_the_projector_and_the_newline_still_learn():
    spec = recipe("llava_next").task.model
    processor = build_processor(spec)
    model = build_multimodal(spec, processor).model
    inputs = processor.image_processor(images=pictures()[:1], return_tensors="pt")
    (tokens,) = TileCache().features(model, list(inputs["pixel_values"]), inputs["image_sizes"])
    tokens.square().sum().backward()
    taught = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert taught == {"multi_modal_projector", "image_newline"}
