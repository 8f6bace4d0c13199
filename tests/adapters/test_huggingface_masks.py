"""Masks as transformers makes them for flash and flex attention, in encoders that take images with padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tokred

from . import zoo_huggingface as zoo
from .promises import difference, run

METHODS = [tokred.ToMe(r=3), tokred.ToMe(r=[0, 6, 3]), tokred.TopK(keep=0.7, layers=(1,)), tokred.Random()]


def flat(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    """A kernel like flash attention: it takes no mask but the tokens that are not padding."""
    assert mask is None or mask.shape == (q.shape[0], k.shape[2]), "flash attention takes no other mask"
    dense = None if mask is None else mask.bool()[:, None, None]
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, dense, **kwargs)


@pytest.fixture
def flash(monkeypatch):
    """A name of an attention implementation whose kernel and masks are those of flash attention."""
    name = "flash_attention_2"
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, flat)
    assert AttentionMaskInterface._global_mapping[name] is flash_attention_mask
    return name


def padded(name: str) -> dict[str, Any]:
    """Two images, of which the second has padding."""
    x = zoo.images(name)
    if name == "pix2struct":
        x["flattened_patches"][1, 40:] = 0.0
        return x
    if name != "siglip2":
        mask = torch.ones(2, 8, 8, dtype=torch.bool)
        mask[1, 5:], mask[1, :, 6:] = False, False
        return {**x, "patch_attention_mask": mask}
    shown = torch.arange(64) < torch.tensor([[64], [30]])
    return {**x, "spatial_shapes": torch.tensor([[8, 8], [5, 6]]), "pixel_attention_mask": shown.long()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["siglip2", *zoo.UNPOOLED])
def test_padding_is_hidden_under_flash_attention_as_under_sdpa(name, method, flash):
    outputs = []
    for attention in ("sdpa", flash):
        x = padded(name)
        model: Any = zoo.build(name)
        model.config._attn_implementation_internal = attention
        with torch.no_grad():
            whole = model(**x).last_hidden_state
            with tokred.patch(model, method, full_length=True, verify=False):
                reduced = model(**x).last_hidden_state
        outputs.append((whole, reduced))
        assert difference(reduced, whole) > 1e-4
    x = padded(name)
    real = next((x[key].flatten(1) for key in ("pixel_attention_mask", "patch_attention_mask") if key in x), None)
    real = x["flattened_patches"].sum(dim=2) != 0 if real is None else real.bool()
    for sdpa, other in zip(*outputs, strict=True):
        torch.testing.assert_close(other[real], sdpa[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_block_masks_of_flex_attention_are_understood(method):
    expected, found = (run_with(name, method) for name in ("sdpa", "flex_attention"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def run_with(attention: str, method: Any) -> Tensor:
    model = zoo.build("vit", attention)
    with tokred.patch(model, method):
        return run(model, zoo.images("vit"))


def test_a_capped_attention_keeps_its_cap_where_sizes_are_added(monkeypatch):
    from transformers.models.videoprism.modeling_videoprism import eager_attention_forward

    def kernel(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        assert mask is None, "a kernel like flash attention, which caps logits, and takes no additive mask"
        assert kwargs.get("softcap") is None or kwargs["softcap"] == 2.0
        return eager_attention_forward(module, q, k, v, None, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", kernel)
    outputs = []
    for attention in ("eager", "flash_attention_2"):
        model: Any = zoo.build("videoprism")
        model.config._attn_implementation_internal = attention
        with tokred.patch(model, tokred.ToMe(r=8), verify=False):
            outputs.append(run(model, zoo.images("videoprism")))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
