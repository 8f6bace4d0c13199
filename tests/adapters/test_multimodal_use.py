"""What people do with models: none of it may give something else in silence."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tokred

from . import zoo_multimodal as zoo

METHODS = {"features": tokred.FoPru(keep=0.4), "decoder": tokred.FastV(layer=2, keep=0.4)}
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
places = pytest.mark.parametrize("place", METHODS)


def prepared(counts: tuple[int, ...] = (1, 2), name: str = "Llava") -> tuple[Any, dict[str, Any]]:
    model = zoo.build(name)
    return model, zoo.prompts(name, model, list(counts))


@torch.no_grad()
def logits_of(model: Any, inputs: dict[str, Any], **more: Any) -> Tensor:
    return model(**inputs, **more).logits


def real(inputs: dict[str, Any]) -> Tensor:
    return inputs["attention_mask"] == 1


def test_keep_of_nothing_keeps_one_and_keep_of_more_keeps_all():
    model, inputs = prepared()
    before = logits_of(model, inputs)
    with pytest.warns(UserWarning, match="one is kept"):
        method = tokred.DivPrune(keep=0)
    with tokred.patch(model, method) as handle:
        assert torch.isfinite(logits_of(model, inputs)).all()
        assert [tokens.tokens for tokens in handle.trace.visual_tokens] == [1, 1, 1]
    with tokred.patch(model, tokred.DivPrune(keep=10_000)):
        assert torch.equal(logits_of(model, inputs), before)


@places
def test_placeholders_that_do_not_fit_are_named(place: str):
    model, inputs = prepared()
    wrong = inputs["input_ids"].clone()
    wrong[1, (wrong[1] == zoo.IMAGE).nonzero()[0]] = 5
    with tokred.patch(model, METHODS[place]):
        with pytest.raises(tokred.TokredError, match="placeholders"):
            logits_of(model, {**inputs, "input_ids": wrong})
        with pytest.raises(tokred.TokredError, match="neither pixels nor features"):
            logits_of(model, {k: v for k, v in inputs.items() if k != "pixel_values"})
        logits_of(model, inputs)


@pytest.mark.parametrize("name", ["Llava", "Qwen2VL", "Gemma3"])
def test_prompts_without_images_are_left_alone(name: str):
    model, inputs = prepared((0, 0), name)
    settings = {"max_new_tokens": 4, "do_sample": False}
    before, words = logits_of(model, inputs), model.generate(**inputs, **settings)
    with tokred.patch(model, METHODS["features"]):
        assert torch.equal(logits_of(model, inputs), before)
        assert torch.equal(model.generate(**inputs, **settings), words)


@places
def test_in_out_and_in_again(place: str):
    model, inputs = prepared()
    before = logits_of(model, inputs)
    with tokred.patch(model, METHODS[place]):
        first = logits_of(model, inputs)
        with pytest.raises(tokred.AlreadyPatchedError):
            tokred.patch(model, METHODS[place])
        assert torch.equal(logits_of(model, inputs), first)
    assert torch.equal(logits_of(model, inputs), before)
    handle = tokred.patch(model, METHODS[place])
    assert torch.equal(logits_of(model, inputs), first)
    tokred.unpatch(model)
    handle.remove()
    assert torch.equal(logits_of(model, inputs), before)


@places
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_patched_model_are_models_of_their_own(place: str, clone: Callable[[Any], Any]):
    model, inputs = prepared()
    before = logits_of(zoo.build("Llava"), inputs)
    model = zoo.build("Llava")  # one that has not run: what transformers collects states with cannot be pickled
    with tokred.patch(model, METHODS[place]):
        other = clone(model)
        expected = logits_of(model, inputs)
        assert torch.equal(logits_of(other, inputs), expected)
        if clone is copy.deepcopy:
            assert torch.equal(logits_of(clone(model), inputs), expected)
        with torch.no_grad():
            other.lm_head.weight.zero_()
        assert torch.equal(logits_of(model, inputs), expected)
    assert torch.equal(logits_of(model, inputs), before)
    assert (logits_of(other, inputs) == 0).all()
    tokred.unpatch(other)
    assert "forward" not in vars(other.model)


@places
def test_a_patched_model_is_saved_as_it_was(place: str, tmp_path: Path):
    model, inputs = prepared()
    before = logits_of(model, inputs)
    with tokred.patch(model, METHODS[place]):
        model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits_of(again, inputs), before, **CLOSE)
    assert "tokred" not in (tmp_path / "config.json").read_text()


@places
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(place: str, dtype: torch.dtype):
    model, inputs = prepared()
    model.to(dtype)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    before = logits_of(model, inputs)
    with tokred.patch(model, METHODS[place]):
        found = logits_of(model, inputs)
        assert found.dtype == dtype
        assert torch.isfinite(found[real(inputs)]).all()
    with tokred.patch(model, tokred.FoPru(keep=1.0)):
        assert torch.equal(logits_of(model, inputs), before)


@places
def test_autocast_and_inference_mode(place: str):
    model, inputs = prepared()
    with tokred.patch(model, METHODS[place]):
        plain = logits_of(model, inputs)
        with torch.inference_mode():
            assert torch.equal(model(**inputs).logits, plain)
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(logits_of(model, inputs)[real(inputs)]).all()
        assert torch.equal(logits_of(model, inputs), plain)


def test_an_image_that_is_not_finite_is_named():
    model, inputs = prepared()
    inputs["pixel_values"][1, 0, 3, 3] = torch.nan
    with tokred.patch(model, METHODS["features"]), pytest.raises(tokred.NonFiniteError, match="image 1"):
        logits_of(model, inputs)


@places
def test_ways_to_ask_for_outputs(place: str):
    model, inputs = prepared()
    with tokred.patch(model, METHODS[place]):
        expected = logits_of(model, inputs)
        with torch.no_grad():
            assert torch.equal(model(**inputs, return_dict=False)[0], expected)
        assert torch.equal(logits_of(model, inputs, logits_to_keep=2), expected[:, -2:])
        where = torch.tensor([0, 7, -1])
        assert torch.equal(logits_of(model, inputs, logits_to_keep=where), expected[:, where])


@places
def test_eager_attention_gives_its_weights(place: str):
    model, inputs = prepared()
    with tokred.patch(model, METHODS[place]):
        expected = logits_of(model, inputs)
    model.set_attn_implementation("eager")
    with torch.no_grad(), tokred.patch(model, METHODS[place]) as handle:
        output = model(**inputs, output_attentions=True)
        per_layer = handle.trace.tokens_per_layer
    torch.testing.assert_close(output.logits[real(inputs)], expected[real(inputs)], **CLOSE)
    text = (real(inputs) & (inputs["input_ids"] != zoo.IMAGE)).sum(dim=1).tolist()
    longest = [max(n[layer] + t for n, t in zip(per_layer, text, strict=True)) for layer in range(4)]
    assert [attention.shape[-1] for attention in output.attentions] == longest or place == "decoder"


@places
def test_kernels_that_take_no_masks_of_four_dimensions(place: str):
    model, inputs = prepared()
    with tokred.patch(model, METHODS[place]):
        expected = logits_of(model, inputs)
    seen = []

    def kernel(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        assert mask is None or mask.ndim == 2
        seen.append(mask)
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        if not module.is_causal:
            return attend(module, q, k, v, None, **kwargs)
        tokens = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])[None, None]
        if mask is not None:
            tokens = tokens & mask.bool()[:, None, None, -k.shape[2] :] | torch.eye(k.shape[2], dtype=torch.bool)
        return attend(module, q, k, v, tokens, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("flat_masks", kernel)
    AttentionMaskInterface.register("flat_masks", flash_attention_mask)
    model.model.language_model.set_attn_implementation("flat_masks")
    with tokred.patch(model, METHODS[place]):
        found = logits_of(model, inputs)
    assert seen
    torch.testing.assert_close(found[real(inputs)], expected[real(inputs)], **CLOSE)


@places
@pytest.mark.parametrize("name", ["Llava", "LlavaNext"])
def test_embeddings_instead_of_words(name: str, place: str):
    model, inputs = prepared(name=name)
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    with tokred.patch(model, METHODS[place]):
        expected = logits_of(model, inputs)
        rest = {k: v for k, v in inputs.items() if k != "input_ids"}
        assert torch.equal(logits_of(model, rest, inputs_embeds=embeds), expected)


@places
def test_masks_of_four_dimensions(place: str):
    model, inputs = prepared()
    with tokred.patch(model, METHODS[place]):
        expected = logits_of(model, inputs)
        tokens = inputs["input_ids"].shape[1]
        causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None] & real(inputs)[:, None, None]
        low = torch.zeros(causal.shape).masked_fill(~causal, torch.finfo(torch.float32).min)
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        for mask in (causal | torch.eye(tokens, dtype=torch.bool), low):
            found = logits_of(model, {**inputs, "attention_mask": mask}, position_ids=positions)
            torch.testing.assert_close(found[real(inputs)], expected[real(inputs)], **CLOSE)


@places
@pytest.mark.parametrize("name", ["Llava", "Qwen2VL"])
def test_a_cache_that_is_reset_starts_again(name: str, place: str):
    model, inputs = prepared(name=name)
    other = zoo.prompts(name, model, [2, 1], seed=5)
    settings = {"max_new_tokens": 3, "do_sample": False}
    with torch.no_grad(), tokred.patch(model, METHODS[place]):
        expected = model.generate(**other, **settings)
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=400)
        model.generate(**inputs, **settings, past_key_values=cache)
        cache.reset()
        assert torch.equal(model.generate(**other, **settings, past_key_values=cache), expected)


@places
@pytest.mark.parametrize("name", ["Llava", "Qwen2VL"])
def test_one_prompt_with_two_continuations(name: str, place: str):
    model, inputs = prepared(name=name)
    with torch.no_grad(), tokred.patch(model, METHODS[place]):
        cache = model(**inputs, use_cache=True, past_key_values=DynamicCache()).past_key_values
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        for word in (5, 6):
            step = {"input_ids": torch.full((2, 1), word), "attention_mask": mask}
            found = model(**step, past_key_values=copy.deepcopy(cache)).logits[:, -1]
            words = {"input_ids": torch.cat([inputs["input_ids"], step["input_ids"]], dim=1), "attention_mask": mask}
            if place == "features":
                types = inputs.get("mm_token_type_ids")
                more = {} if types is None else {"mm_token_type_ids": torch.nn.functional.pad(types, (0, 1))}
                torch.testing.assert_close(found, logits_of(model, {**inputs, **more, **words})[:, -1], **CLOSE)
            assert torch.isfinite(found).all()


@places
def test_hooks_that_move_devices_stay(place: str):
    accelerate = pytest.importorskip("accelerate")
    model, inputs = prepared()
    plain = logits_of(model, inputs)
    model = accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    with tokred.patch(model, METHODS[place]):
        found = logits_of(model, inputs)
    assert torch.equal(logits_of(model, inputs), plain)
    assert hasattr(model.model.language_model, "_hf_hook") or hasattr(model, "_hf_hook")
    with tokred.patch(zoo.build("Llava"), METHODS[place]) as handle:
        torch.testing.assert_close(found, logits_of(handle.model, inputs), **CLOSE)
