"""Every way of generating gives what the cut prompts give, or says why it cannot."""

from __future__ import annotations

import copy
import gc
import inspect
import threading
import weakref
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationMixin

import tokred
from tokred.methods.fastv import FastV
from tokred.methods.fopru import FoPru

from . import zoo_multimodal as zoo
from .short_runs import greedy, kept_tokens

FAMILIES = ["Llava", "LlavaNext", "Qwen2VL", "Gemma3", "PaliGemma", "Idefics3"]
METHODS = {
    "features": FoPru(keep=0.4),
    "original": FoPru(keep=0.4, positions="original"),
    "decoder": FastV(layer=2, keep=0.4),
}


def patched(name: str, place: str) -> tuple[Any, dict[str, Any], Any]:
    model = zoo.build(name)
    inputs = zoo.prompts(name, model, [1, 2])
    return model, inputs, METHODS[place]


def repeatable(name: str, place: str) -> tuple[Any, dict[str, Any], Any]:
    """Prompts that generate may repeat: it used to mix up the images of a prompt."""
    model = zoo.build(name)
    mixes = "beam_entry" in inspect.getsource(GenerationMixin._expand_multimodal_outputs)
    return model, zoo.prompts(name, model, [1, 1 if mixes else 2]), METHODS[place]


def cases() -> list[tuple[str, str]]:
    return [(name, place) for name in FAMILIES for place in METHODS if place != "decoder" or name != "Gemma3"]


@pytest.mark.parametrize(("name", "place"), cases())
def test_static_and_dynamic_caches_give_the_same(name: str, place: str):
    model, inputs, method = patched(name, place)
    with torch.no_grad(), tokred.patch(model, method):
        dynamic = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        static = model.generate(**inputs, max_new_tokens=6, do_sample=False, cache_implementation="static")
    assert torch.equal(dynamic, static)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_cache_gives_what_a_cache_gives(name: str):
    model = zoo.build(name)
    inputs = zoo.prompts(name, model, [1, 2])
    settings = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [zoo.IMAGE]}
    with torch.no_grad(), tokred.patch(model, FoPru(keep=0.4)):
        assert torch.equal(model.generate(**inputs, **settings, use_cache=False), model.generate(**inputs, **settings))


@pytest.mark.parametrize(("name", "place"), cases())
def test_beams_give_what_each_prompt_gives_alone(name: str, place: str):
    model, inputs, method = repeatable(name, place)
    settings = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "num_return_sequences": 2}
    with torch.no_grad(), tokred.patch(model, method):
        together = model.generate(**inputs, **settings)[:, -4:]
        alone = zoo.prompts(name, model, [1])
        first = model.generate(**alone, **settings)[:, -4:]
    assert torch.equal(together[:2], first)


@pytest.mark.parametrize("name", ["Llava", "Qwen2VL"])
@pytest.mark.parametrize("place", METHODS)
def test_sampling_several_sequences_follows_the_seed(name: str, place: str):
    model, inputs, method = repeatable(name, place)
    with torch.no_grad(), tokred.patch(model, method):
        torch.manual_seed(0)
        one = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=2)
        torch.manual_seed(0)
        two = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=2)
    assert torch.equal(one, two)


@pytest.mark.parametrize(("name", "place"), [case for case in cases() if case[0] != "PaliGemma"])
def test_drafts_from_the_prompt_change_nothing(name: str, place: str):
    # PaliGemma is left out: its prompts look both ways, so that drafts change its answers without any patch, too
    model = zoo.build(name)
    inputs = zoo.prompts(name, model, [2])
    ids = inputs["input_ids"]
    ids[0, -4:] = torch.tensor([5, 6, 5, 6])  # the end of the prompt occurs twice: there is something to draft
    with torch.no_grad(), tokred.patch(model, METHODS[place]):
        plain = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        assisted = model.generate(**inputs, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(plain, assisted)


@pytest.mark.parametrize("place", METHODS)
def test_an_assistant_model_changes_nothing(place: str):
    model = zoo.build("Llava")
    inputs = zoo.prompts("Llava", model, [2])
    helper = zoo.build("Llava")
    with torch.no_grad(), tokred.patch(model, METHODS[place]):
        plain = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        assisted = model.generate(**inputs, max_new_tokens=8, do_sample=False, assistant_model=helper)
    assert torch.equal(plain, assisted)


@pytest.mark.parametrize("name", ["Llava", "Qwen2VL", "PaliGemma"])
@pytest.mark.parametrize("place", METHODS)
def test_a_loop_of_ones_own_gives_what_generate_gives(name: str, place: str):
    model, inputs, method = patched(name, place)
    with torch.no_grad(), tokred.patch(model, method):
        wanted = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, -4:]
        positions = inputs["attention_mask"].cumsum(1) - 1
        given = {} if name == "Qwen2VL" else {"position_ids": positions.clamp(min=0) + (name == "PaliGemma")}
        out = model(**inputs, **given, use_cache=True)
        cache, mask = out.past_key_values, inputs["attention_mask"]
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        found = [token]
        for _ in range(3):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            given = {name: p[:, -1:] + 1 for name, p in given.items()}
            out = model(input_ids=token, attention_mask=mask, past_key_values=cache, **given)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            found.append(token)
    assert torch.equal(torch.cat(found, dim=1), wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_second_turn_with_the_cache_of_the_first_is_refused(name: str):
    model = zoo.build(name)
    inputs = zoo.prompts(name, model, [1])
    with torch.no_grad(), tokred.patch(model, FoPru(keep=0.4)):
        first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], dim=1)
        again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": first.past_key_values}
        with pytest.raises(tokred.TokredError, match="past_key_values"):
            model.generate(**again, max_new_tokens=3, do_sample=False)


def test_a_second_turn_goes_on_behind_a_decoder_method():
    model = zoo.build("Llava")
    inputs = zoo.prompts("Llava", model, [1])
    with torch.no_grad(), tokred.patch(model, FastV(layer=2, keep=0.4)):
        first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        longer = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        ids = first.sequences
        again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": first.past_key_values}
        assert torch.equal(model.generate(**again, max_new_tokens=3, do_sample=False), longer)


def test_prefill_in_chunks_is_refused():
    model = zoo.build("Llava")
    inputs = zoo.prompts("Llava", model, [1])
    with torch.no_grad(), tokred.patch(model, FoPru(keep=0.4)), pytest.raises(tokred.TokredError, match="chunk"):
        model.generate(**inputs, max_new_tokens=3, prefill_chunk_size=10)


def test_features_made_before_the_patch_are_refused_and_those_made_after_are_right():
    model = zoo.build("Llava")
    inputs = zoo.prompts("Llava", model, [1])
    pixels = inputs.pop("pixel_values")
    with torch.no_grad():
        before = model.model.get_image_features(pixels, return_dict=True)
        with tokred.patch(model, FoPru(keep=0.4)):
            with pytest.raises(tokred.TokredError, match="mm_encoder_outputs"):
                model(**inputs, mm_encoder_outputs={"image": before})
            own = model.model.get_image_features(pixels, return_dict=True)
            expected = model(**inputs, pixel_values=pixels).logits
            torch.testing.assert_close(model(**inputs, mm_encoder_outputs={"image": own}).logits, expected)


@pytest.mark.parametrize("name", ["Llava", "LlavaNext", "Qwen2VL"])
@pytest.mark.parametrize("place", METHODS)
def test_padding_on_the_right_gives_what_padding_on_the_left_gives(name: str, place: str):
    model = zoo.build(name)
    left, right = (zoo.prompts(name, model, [1, 2], side=side) for side in ("left", "right"))
    with torch.no_grad(), tokred.patch(model, METHODS[place]):
        one, two = model(**left).logits, model(**right).logits
    for b, mask in enumerate(right["attention_mask"]):
        real = int(mask.sum())
        torch.testing.assert_close(one[b, -4:], two[b, real - 4 : real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["Llava", "Qwen3VL", "InternVL"])
@pytest.mark.parametrize("place", METHODS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_count_the_same_words_and_gradients_reach_the_encoder(name: str, place: str, checkpointing: bool):
    model, inputs, method = patched(name, place)
    labels = torch.where((inputs["attention_mask"] == 1) & (inputs["input_ids"] < zoo.WORDS), inputs["input_ids"], -100)
    gradients = []
    for on in {False, checkpointing}:
        fresh = copy.deepcopy(model).train()
        if on:
            fresh.gradient_checkpointing_enable()
        with tokred.patch(fresh, method):
            out = fresh(**inputs, labels=labels, use_cache=False)
            logits = out.logits[:, :-1][labels[:, 1:] >= 0]
            expected = torch.nn.functional.cross_entropy(logits, labels[:, 1:][labels[:, 1:] >= 0])
            torch.testing.assert_close(out.loss, expected)
            out.loss.backward()
        gradients.append({n: p.grad for n, p in fresh.named_parameters() if p.grad is not None})
    assert any("layers.3" in n or "visual" in n or "vision" in n for n in gradients[0])
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for n, g in other.items():
            torch.testing.assert_close(g, gradients[0][n], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("place", METHODS)
def test_hidden_states_keep_their_length(place: str):
    model, inputs, method = patched("Llava", place)
    with torch.no_grad(), tokred.patch(model, method):
        out = model(**inputs, output_hidden_states=True)
    assert {h.shape[1] for h in out.hidden_states} == {inputs["input_ids"].shape[1]}
    assert len(out.hidden_states) == 5


@pytest.mark.parametrize("place", METHODS)
def test_an_exception_in_the_middle_leaves_the_model_usable(place: str):
    model, inputs, method = patched("Llava", place)
    with torch.no_grad():
        before = model(**inputs).logits

        def fail(*_: Any):
            raise RuntimeError("stop")

        with tokred.patch(model, method):
            expected = model(**inputs).logits
            hook = model.model.language_model.layers[3].register_forward_hook(fail)
            with pytest.raises(RuntimeError, match="stop"):
                model.generate(**inputs, max_new_tokens=2)
            hook.remove()
            assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("name", ["Llava", "LlavaNext", "Qwen2VL"])
@pytest.mark.parametrize("place", METHODS)
def test_threads_do_not_mix_their_prompts(name: str, place: str):
    model = zoo.build(name)
    batches = [zoo.prompts(name, model, [1 + i % 2], seed=i) for i in range(4)]
    with torch.no_grad(), tokred.patch(model, METHODS[place]):
        alone = [model.generate(**x, max_new_tokens=6, do_sample=False) for x in batches]
        found: list[Any] = [None] * len(batches)

        def run(i: int):
            with torch.no_grad():
                for _ in range(3):
                    found[i] = model.generate(**batches[i], max_new_tokens=6, do_sample=False)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_of_ones_own_is_filled_with_the_short_prompt(name: str):
    model = zoo.build(name)
    inputs = zoo.prompts(name, model, [1, 1])
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad(), tokred.patch(model, FoPru(keep=0.4)) as handle:
        sequences = model.generate(**inputs, max_new_tokens=3, do_sample=False, past_key_values=cache)
    kept = kept_tokens(handle)
    assert cache.get_seq_length() == max(map(len, kept)) + 2
    assert torch.equal(sequences[:, -3:], greedy(model, inputs, kept, 3))


@pytest.mark.parametrize("place", METHODS)
def test_what_is_remembered_of_a_prompt_keeps_neither_its_cache_nor_its_keys(place: str):
    model, inputs, method = patched("Llava", place)
    with torch.no_grad(), tokred.patch(model, method) as handle:
        out = model(**inputs, use_cache=True)
        cache = weakref.ref(out.past_key_values)
        keys = weakref.ref(out.past_key_values.layers[0].keys)
        del out
        gc.collect()
        assert cache() is None
        assert keys() is None
        assert handle.trace.visual_tokens
