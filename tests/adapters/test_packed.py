"""Encoders that take images one behind another in one sequence: every image is reduced as it would be alone."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tokred
from tokred.adapters import find_tower
from tokred.adapters.huggingface_parts import PACKED, PIXTRAL
from tokred.adapters.packed import Packing
from tokred.cost import cost
from tokred.errors import UnsupportedModelError

from . import zoo_huggingface as zoo
from . import zoo_multimodal as multimodal
from .promises import difference

NAMES = [name for name in zoo.PACKED if name in zoo.MODELS]
# one of every way to build a block, to keep images apart, and to number the tokens in front
STRUCTURES = [n for n in ("qwen2-vl", "kimi", "video-llama3", "hunyuan", "inkling2", "pixtral") if n in NAMES]
PIXTRAL_FLASH = "cu_seq_lens_q" in inspect.getsource(zoo.MODELS["pixtral"][0].forward)
GRIDS = [(8, 8), (8, 8), (4, 8), (8, 8), (6, 4)]


@pytest.mark.parametrize("parts", [PACKED, PIXTRAL])
def test_images_that_cannot_be_told_apart_are_refused(parts):
    with pytest.raises(UnsupportedModelError, match="not told where each of them begins"):
        parts.lengths({"attention_mask": None})


@torch.no_grad()
def rows(model: Any, x: dict[str, Any]) -> torch.Tensor:
    """[L, C] what leaves the encoder, one row for every token of all images."""
    return model(**x).last_hidden_state.flatten(0, -2)


def test_neighbours_of_equal_length_run_together():
    packing = Packing.of([4, 4, 2, 0, 4])
    assert packing.runs == ((2, 4), (1, 2), (1, 4))
    table = torch.arange(14)[:, None]
    batches = packing.split((table, -table))
    assert [tuple(a.shape) for a, _ in batches] == [(2, 4, 1), (1, 2, 1), (1, 4, 1)]
    assert torch.equal(torch.cat([a.flatten() for a, _ in batches]), table[:, 0])
    assert all(torch.equal(a, -b) for a, b in batches)


def assert_as_alone(name: str, method: tokred.Method) -> None:
    model = zoo.build(name)
    whole = rows(model, zoo.packed_images(name, GRIDS))
    with tokred.patch(model, method, verify=False):
        together = rows(model, zoo.packed_images(name, GRIDS))
        alone = [rows(model, zoo.packed_images(name, [grid], first=i)) for i, grid in enumerate(GRIDS)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert difference(together, whole) > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_images_in_one_sequence_are_reduced_as_they_are_alone(name):
    assert_as_alone(name, tokred.ToMe(r=5))
    assert_as_alone(name, tokred.TopK(keep=0.6, layers=(0, 1)))


@pytest.mark.parametrize("method", [m for m in tokred.methods() if m not in ("tome", "topk")])
@pytest.mark.parametrize("name", STRUCTURES)
def test_images_in_one_sequence_are_reduced_as_they_are_alone_by_every_method(name, method):
    assert_as_alone(name, tokred.create_method(method))


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_other_kernels_give_what_sdpa_gives(name, attention, monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def flash(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        """Flash attention that takes images one behind another, and no mask."""
        assert attention_mask is None, "flash attention takes no additive mask"
        sdpa, bounds = ALL_ATTENTION_FUNCTIONS["sdpa"], kwargs.pop("cu_seq_lens_q", None)
        if bounds is None:
            return sdpa(module, query, key, value, None, **kwargs)
        parts = zip(*(x.split(bounds.diff().tolist(), dim=2) for x in (query, key, value)), strict=True)
        return torch.cat([sdpa(module, *part, None)[0] for part in parts], dim=1), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
    if (name, attention) == ("pixtral", "flash_attention_2") and not PIXTRAL_FLASH:
        pytest.skip("in transformers 5.18 Pixtral under flash attention does not keep images apart")
    outputs = []
    for kind in ("sdpa", attention):
        model: Any = zoo.build(name)
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation_internal = kind
        outputs.append([rows(model, zoo.packed_images(name, GRIDS))])
        for method in (tokred.ToMe(r=5), tokred.TopK(layers=(1,))):
            with tokred.patch(model, method, verify=False):
                outputs[-1].append(rows(model, zoo.packed_images(name, GRIDS)))
    for found, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STRUCTURES)
def test_checkpointing_gives_the_same_gradients(name):
    gradients = []
    for checkpointing in (False, True):
        model: Any = zoo.build(name).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        with tokred.patch(model, tokred.ToMe(r=5), verify=False):
            model(**zoo.packed_images(name, GRIDS)).last_hidden_state.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 20
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-5)


def test_a_trace_is_of_images_of_equal_length_and_draws_no_picture():
    model = zoo.build("qwen2-vl")
    with tokred.patch(model, tokred.ToMe(r=5), trace=True) as handle:
        rows(model, zoo.packed_images("qwen2-vl", [(8, 8), (4, 16)]))
        assert handle.trace.slot().shape == (2, 64)
        assert handle.trace.tokens_per_layer == [59, 54, 49]
        with pytest.raises(ValueError, match="do not come row by row"):
            _ = handle.trace.grid
        rows(model, zoo.packed_images("qwen2-vl", GRIDS))
        with pytest.raises(ValueError, match=r"different numbers of tokens \(64, 32, 64, 24\)"):
            _ = handle.trace


def test_merged_patches_share_one_row():
    model = zoo.build("qwen2-vl")
    with tokred.patch(model, tokred.ToMe(r=9), trace=True) as handle:
        found = rows(model, zoo.packed_images("qwen2-vl", [(8, 8), (4, 16)])).view(2, 64, -1)
        slot = handle.trace.slot()
    for image in range(2):
        together = slot[image] == slot[image, :, None]
        assert together.sum() > 64
        assert all(torch.equal(found[image, i], found[image, j]) for i, j in together.nonzero().tolist())


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_is_known_for_images_of_every_size(name):
    model: Any = zoo.build(name, **zoo.LARGER).requires_grad_(False)
    tower = find_tower(model)
    assert tower.shape.num_patches == (64 if name == "pixtral" else 1024), "Pixtral's config has a size"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**zoo.packed_images(name, [(8, 8)]))
    shape = tower.shape.with_tokens(64 + tower.shape.num_prefix)
    assert cost(shape).macs == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


def test_a_share_of_the_cost_is_kept_for_the_smallest_image_too():
    model = zoo.build("qwen2-vl")
    with tokred.patch(model, tokred.ToMe(budget="80%"), trace=True) as handle:
        for grid in ((2, 2), (4, 4), (16, 16)):
            rows(model, zoo.packed_images("qwen2-vl", [grid]))
            shape = handle.tower.shape.with_tokens(grid[0] * grid[1])
            share = cost(shape, handle.trace.tokens_per_layer).macs / cost(shape).macs
            assert share <= 0.8, grid


MULTIMODAL = ("Qwen2VL", "Qwen3VL", "Mistral3", "Glm4v", "Kimi_K25", "PaddleOCRVL", "VideoLlama3")


@pytest.mark.parametrize("name", [n for n in MULTIMODAL if n in multimodal.BY_NAME])
def test_methods_inside_the_encoder_and_behind_it(name):
    model = multimodal.build(name)
    inputs = multimodal.prompts(name, model, [1, 2])
    with torch.no_grad():
        before = model(**inputs).logits
        with tokred.patch(model, tokred.ToMe(r=2)):
            merged = model(**inputs).logits
            words = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        with tokred.patch(model, tokred.ToMe(r=2), tokred.FoPru(keep=0.5)) as handle:
            pruned = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, before)
    assert words.shape[1] == inputs["input_ids"].shape[1] + 3
    assert all(tokens.tokens < tokens.all_tokens for tokens in handle.trace.visual_tokens)
    real = inputs["attention_mask"] == 1
    assert torch.isfinite(pruned[real]).all()
    assert difference(merged[real], before[real]) > 1e-4
