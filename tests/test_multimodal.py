"""Multimodal models as users have them: with a processor, images of all kinds, pipelines, several methods at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import pipeline

import tokred
from tests.multimodal import recipe
from tokred.train.vqa_model import build_multimodal, build_processor

QUESTION = "what shape is in the image?"


@pytest.fixture(scope="module", params=["llava", "llava_next"])
def parts(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    torch.manual_seed(0)
    spec = recipe(request.param).task.model
    processor = build_processor(spec)
    return build_multimodal(spec, processor).eval(), processor


def ask(processor: Any, images: list[list[Image.Image]]) -> dict[str, Any]:
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [*({"type": "image"} for _ in row), {"type": "text", "text": QUESTION}]}],
            add_generation_prompt=True,
        )
        for row in images
    ]
    given = images if any(images) else None
    return dict(processor(images=given, text=prompts, padding=True, padding_side="left", return_tensors="pt"))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (8000, 50), (50, 8000), (33, 17)])
def test_images_of_all_sizes_and_modes_are_reduced(parts: tuple[Any, Any], mode: str, size: tuple[int, int]):
    model, processor = parts
    picture = Image.effect_noise(size, 60).convert(mode).convert("RGB")
    inputs = ask(processor, [[picture]])
    with torch.no_grad(), tokred.patch(model, tokred.FoPru(keep=0.5)) as handle:
        out = model.generate(**inputs, max_new_tokens=2)
    [tokens] = handle.trace.visual_tokens
    assert 1 <= tokens.patches < tokens.all_patches
    assert tokens.newlines == tokens.all_newlines
    assert torch.equal(out[:, :-2], inputs["input_ids"])
    [drawn] = handle.trace.overlay([picture])
    assert min(drawn.size) >= 1


@pytest.mark.parametrize("keep", [0, 0.0])
def test_less_than_one_token_is_one_token_and_a_warning(parts: tuple[Any, Any], keep: float):
    model, processor = parts
    with pytest.warns(UserWarning, match="one is kept"):
        method = tokred.DivPrune(keep=keep, newlines="drop")
    with torch.no_grad(), tokred.patch(model, method) as handle:
        model(**ask(processor, [[Image.new("RGB", (16, 16))]]))
    assert handle.trace.visual_tokens[0].tokens <= handle.trace.visual_tokens[0].all_tokens // 4


def test_more_tokens_than_there_are_keeps_all_of_them(parts: tuple[Any, Any]):
    model, processor = parts
    inputs = ask(processor, [[Image.effect_noise((32, 32), 60).convert("RGB")]])
    with torch.no_grad():
        before = model(**inputs).logits
        with tokred.patch(model, tokred.FoPru(keep=10_000)):
            assert torch.equal(model(**inputs).logits, before)


def test_pixels_that_are_not_numbers_are_named(parts: tuple[Any, Any]):
    model, processor = parts
    inputs = ask(processor, [[Image.new("RGB", (16, 16))], [Image.new("RGB", (16, 16))]])
    inputs["pixel_values"][1] = float("nan")
    with tokred.patch(model, tokred.FoPru(keep=0.5)), pytest.raises(tokred.NonFiniteError, match="image 1"):
        model(**inputs)


def test_prompts_without_images_and_with_several_share_a_batch(parts: tuple[Any, Any]):
    model, processor = parts
    noise = [Image.effect_noise((16, 32), 60).convert("RGB") for _ in range(3)]
    together = ask(processor, [noise[:2], [], noise[2:]])
    with torch.no_grad(), tokred.patch(model, tokred.FoPru(keep=0.5)) as handle:
        out = model.generate(**together, max_new_tokens=3)
        assert [len(prompt) for prompt in handle.trace.prompts] == [2, 0, 1]
        for row, images in zip(out, (noise[:2], [], noise[2:]), strict=True):
            alone = model.generate(**ask(processor, [images]), max_new_tokens=3)
            assert torch.equal(row[-3:], alone[0, -3:])


def test_a_pipeline_works_as_it_is(parts: tuple[Any, Any]):
    model, processor = parts
    ask_pipeline = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": Image.effect_noise((16, 16), 60).convert("RGB")},
                {"type": "text", "text": QUESTION},
            ],
        }
    ]
    with tokred.patch(model, tokred.FoPru(keep=0.5)) as handle:
        answers = ask_pipeline(text=messages, max_new_tokens=2, return_full_text=False)
    assert isinstance(answers[0]["generated_text"], str)
    assert handle.trace.visual_tokens[0].tokens < handle.trace.visual_tokens[0].all_tokens


def test_methods_at_three_places_work_together(parts: tuple[Any, Any]):
    model, processor = parts
    inputs = ask(processor, [[Image.effect_noise((32, 32), 60).convert("RGB")]])
    with torch.no_grad():
        before = model(**inputs).logits
        methods = tokred.ToMe(r=4), tokred.FoPru(keep=0.5), tokred.FastV(layer=1, keep=0.5)
        with tokred.patch(model, *methods) as handle:
            model.generate(**inputs, max_new_tokens=2)
            [tokens] = handle.trace.visual_tokens
            assert tokens.at_end < tokens.tokens < tokens.all_tokens
        assert torch.equal(model(**inputs).logits, before)


def test_two_methods_for_one_place_are_refused(parts: tuple[Any, Any]):
    model, _ = parts
    with pytest.raises(ValueError, match="one method for each place"):
        tokred.patch(model, tokred.FoPru(), tokred.DivPrune())
    with pytest.raises(ValueError, match="one method for each place"):
        tokred.patch(model)


def test_a_second_patch_is_refused_and_unpatch_takes_all_out(parts: tuple[Any, Any]):
    model, _ = parts
    tokred.patch(model, tokred.FoPru())
    with pytest.raises(tokred.AlreadyPatchedError):
        tokred.patch(model, tokred.FastV(layer=1))
    tokred.unpatch(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_model_without_a_language_model_is_refused():
    import timm

    with pytest.raises(tokred.UnsupportedModelError, match="LLaVA"):
        tokred.patch(timm.create_model("vit_tiny_patch16_224", depth=1), tokred.FoPru())
