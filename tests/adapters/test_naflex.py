"""NaFlexViT: images of different shapes in one batch, padded to the longest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.naflexvit import batch_patchify
from torch import Tensor

import tokred

from . import zoo
from .promises import run

AVERAGED, ATTENDED, NO_PREFIX = (
    "naflexvit_base_patch16_gap",
    "naflexvit_base_patch16_map",
    "naflexvit_base_patch16_siglip",
)
GRIDS = ((6, 5), (8, 8), (3, 4))  # of the images in a batch
PADDED = 64


def image(rows: int, columns: int, padded: int | None = None) -> dict[str, Tensor]:
    """One random image as patches with their coordinates, padded to ``padded`` patches."""
    count = rows * columns
    padded = padded or count
    generator = torch.Generator().manual_seed(100 * rows + columns)
    patches = torch.zeros(1, padded, 16 * 16 * 3)
    patches[0, :count] = torch.randn(count, 16 * 16 * 3, generator=generator)
    coordinates = torch.zeros(1, padded, 2, dtype=torch.long)
    coordinates[0, :count] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    valid = (torch.arange(padded) < count).unsqueeze(0)
    return {"patches": patches, "patch_coord": coordinates, "patch_valid": valid}


def batch(images: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([one[key] for one in images]) for key in images[0]}


def padded_batch() -> dict[str, Tensor]:
    return batch([image(*grid, PADDED) for grid in GRIDS])


def origin(model: Any, trace: tokred.Trace, valid: Tensor) -> tuple[Tensor, Tensor]:
    """How many real and how many padding tokens every slot holds: two tensors [B, M]."""
    real = torch.cat([torch.ones(len(valid), model.num_prefix_tokens, dtype=torch.bool), valid], dim=1).float()
    matrix = trace.source_matrix()
    return (matrix * real.unsqueeze(1)).sum(dim=2), (matrix * (1 - real).unsqueeze(1)).sum(dim=2)


@pytest.mark.parametrize("name", [AVERAGED, ATTENDED, NO_PREFIX])
@pytest.mark.parametrize("r", [2, 8, 100])
def test_padding_never_merges_into_real_patches(name, r):
    model, x = zoo.build(name), padded_batch()
    with tokred.patch(model, tokred.ToMe(r=r), trace=True) as handle:
        assert torch.isfinite(run(model, x)).all()
        real, padding = origin(model, handle.trace, x["patch_valid"])
    assert not ((real > 0) & (padding > 0)).any()
    patches = torch.tensor([rows * columns for rows, columns in GRIDS])
    assert torch.equal(real.sum(dim=1), (patches + model.num_prefix_tokens).float()), "no real patch was dropped"


@pytest.mark.parametrize("name", [AVERAGED, ATTENDED, NO_PREFIX])
@pytest.mark.parametrize("r", [1, 2])
def test_a_padded_image_gives_what_it_gives_alone(name, r):
    model = zoo.build(name)
    with tokred.patch(model, tokred.ToMe(r=r)):
        together = run(model, padded_batch())
        alone = torch.cat([run(model, image(*grid)) for grid in GRIDS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [AVERAGED, ATTENDED, NO_PREFIX])
@pytest.mark.parametrize("method", tokred.methods())
def test_what_lies_in_the_padding_does_not_matter(name, method):
    model, x = zoo.build(name), padded_batch()
    other = {**x, "patches": torch.where(x["patch_valid"].unsqueeze(2), x["patches"], torch.tensor(5.0))}
    gentle = {"tome": {"r": 1}, "pitome": {"keep": 0.98}}.get(method, {"keep": 0.95})
    with tokred.patch(model, tokred.create_method(method, **gentle)):
        torch.testing.assert_close(run(model, x), run(model, other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", tokred.methods())
def test_images_of_one_shape_do_not_see_each_other(method):
    model = zoo.build(AVERAGED)
    pair = batch([image(6, 5), {**image(6, 5), "patches": torch.randn(1, 30, 768)}])
    with tokred.patch(model, tokred.create_method(method)):
        alone = run(model, image(6, 5))
        together = run(model, pair)[:1]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [AVERAGED, ATTENDED, NO_PREFIX])
def test_pixels_and_patches_of_one_image_give_the_same_logits(name):
    model = zoo.build(name)
    pixels = torch.randn(1, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    patches, grid = batch_patchify(pixels, (16, 16))
    with tokred.patch(model, tokred.ToMe(r=3)):
        as_patches = run(model, {**image(*grid), "patches": patches})
        torch.testing.assert_close(run(model, pixels), as_patches, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [AVERAGED, ATTENDED])
@torch.no_grad()
def test_the_head_takes_what_the_features_gave(name):
    model, x = zoo.build(name), padded_batch()
    with tokred.patch(model, tokred.ToMe(r=1)):
        features = model.forward_features(**x)
        assert torch.equal(model.forward_head(**features), model(x))
        by_position = model.forward_head(features["patches"], False, features["patch_valid"])
        assert torch.equal(by_position, model(x))


@torch.no_grad()
def test_intermediate_features_have_one_row_for_every_patch_of_the_padded_batch():
    model, x = zoo.build(AVERAGED), padded_batch()
    with tokred.patch(model, tokred.ToMe(r=2)):
        found = model.forward_intermediates(x, output_fmt="NLC", output_dict=True)
    assert [tuple(f.shape) for f in found["image_intermediates"]] == [(3, PADDED, 96)] * 3
    assert torch.equal(found["patch_valid"], x["patch_valid"])
    assert all(torch.isfinite(f[x["patch_valid"]]).all() for f in found["image_intermediates"])
