"""Every method on features in every family: it drops something, prompts do not disturb each other, and it goes away."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokred
from tokred.adapters.multimodal_layout import kind_of

from . import zoo_multimodal as zoo
from .short_runs import capture, head, kept_tokens

METHODS = sorted(tokred.methods("features"))
READ_PATCHES = ("sms", "zoo_prune")  # the features of the encoder, patch by patch
ADAPTIVE = ("correlation", "prumerge", "sms")  # drop as much as they find to be redundant
# one family of every way in which visual tokens come from patches and attention from an encoder
STRUCTURES = ("Llava", "LlavaNext", "Qwen2_5_VL", "InternVL", "Lfm2Vl", "Mistral3", "Aria")


def supports(name: str, method: str) -> bool:
    """Whether a family shows a method what it reads."""
    kind = zoo.BY_NAME[name]
    model_type = zoo.build(name).config.model_type
    plain = kind_of(model_type) == "same" and hasattr(zoo.build(name).model, "multi_modal_projector")
    if method in READ_PATCHES:
        return plain and "Pixtral" not in name
    return kind.reads or not tokred.methods("features")[method].reads_attention


def cases() -> list[Any]:
    pairs = [(name, method) for name in zoo.NAMES for method in METHODS if supports(name, method)]
    full = pytest.mark.full
    return [pytest.param(*pair, marks=() if pair[0] in STRUCTURES else full) for pair in pairs]


def attributes(model: nn.Module) -> dict[str, Any]:
    """Everything that a patch could leave behind."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}
        hooks = {k: len(v) for k, v in own.items() if k.endswith("hooks") and hasattr(v, "__len__")}
        found[name] = (sorted(own), hooks, id(own.get("config")), id(own.get("forward")))
    return found


def last_words(model: Any, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits[:, -3:]


@pytest.mark.parametrize(("name", "method"), cases())
def test_a_method_works_in_a_family_and_goes_away(name: str, method: str):
    model = zoo.build(name)
    inputs = zoo.prompts(name, model, [1, 2])
    alone = zoo.prompts(name, model, [1])
    chosen = tokred.create_method(method)
    with torch.no_grad():
        before, state = model(**inputs).logits, {k: v.clone() for k, v in model.state_dict().items()}
    left, real = attributes(model), inputs["attention_mask"] == 1
    with tokred.patch(model, chosen) as handle:
        together = last_words(model, inputs)
        last = handle.language.last
        choices = [image.choice for row in last.images for image in row] if last is not None else []
        assert torch.isfinite(together).all()
        assert model.state_dict().keys() == state.keys()
        if method not in ADAPTIVE:
            assert len(choices) == 3
            assert all(choice.map.num_slots < choice.num_tokens or choice.merges for choice in choices)
        torch.testing.assert_close(together[:1], last_words(model, alone), atol=1e-4, rtol=1e-4)
    assert attributes(model) == left
    zero = chosen.zero()
    if zero is not None:
        exact = {"atol": 0, "rtol": 0} if method != "prumerge" else {"atol": 1e-4, "rtol": 1e-4}  # sums of one token
        with torch.no_grad(), tokred.patch(model, zero):
            torch.testing.assert_close(model(**inputs).logits[real], before[real], **exact)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["Llava", "LlavaNext", "InternVL"])
@pytest.mark.parametrize("method", ["aim_merge", "prumerge", "visionzip"])
def test_merged_tokens_are_the_sums_that_are_made_by_hand(name: str, method: str):
    model = zoo.build(name)
    inputs = zoo.prompts(name, model, [1, 2])
    with torch.no_grad(), tokred.patch(model, tokred.create_method(method)) as handle:
        logits = model(**inputs).logits
    caught, kept = capture(model, inputs), kept_tokens(handle)
    images = handle.language.last.images
    for b, row in enumerate(images):
        embeds = caught.embeds[b].clone()
        for image in row:
            token_map = image.choice.map
            weights = token_map.weight[0].float() if token_map.weight is not None else None
            slot = token_map.slot[0]
            source = torch.cat([token_map.kept[0], token_map.moved[0]])
            into = torch.cat([torch.arange(token_map.num_slots), token_map.into[0]])
            matrix = torch.zeros(token_map.num_slots, token_map.num_tokens)
            for i, (s, t) in enumerate(zip(source.tolist(), into.tolist(), strict=True)):
                if t >= 0:
                    matrix[t, s] += 1.0 if weights is None else weights[i]
            if token_map.reduce == "mean":
                matrix = matrix / matrix.sum(dim=1, keepdim=True)
            merged = matrix @ caught.embeds[b, image.places]
            embeds[image.places[token_map.kept[0]].sort().values] = merged
            assert slot.max() == token_map.num_slots - 1
        places = torch.cat([image.places[image.choice.map.kept[0]] for image in row])
        text = inputs["attention_mask"][b].bool() & (inputs["input_ids"][b] != zoo.IMAGE)
        text[places] = True
        index = text.nonzero().squeeze(1)
        assert torch.equal(index, kept[b].sort().values)
        with torch.no_grad():
            short = model.model.language_model(inputs_embeds=embeds[index][None], use_cache=False).last_hidden_state
        torch.testing.assert_close(logits[b, index], head(model, short)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("features", ["fopru", "divprune"])
@pytest.mark.parametrize("inside", [tokred.ToMe(r=4), tokred.PiToMe(keep=0.9)])
@pytest.mark.parametrize("name", ["Llava", "LlavaNext", "LlavaSiglip"])
def test_methods_inside_the_encoder_and_behind_it(name: str, inside: Any, features: str):
    model = zoo.build(name)
    inputs = zoo.prompts(name, model, [1, 2])
    left = attributes(model)
    with torch.no_grad():
        before = model(**inputs).logits
        with tokred.patch(model, inside):
            merged = model.model.get_image_features(inputs["pixel_values"], **sizes(inputs)).pooler_output
        with tokred.patch(model, inside, tokred.create_method(features)) as handle:
            logits = model(**inputs).logits
            both = model.model.get_image_features(inputs["pixel_values"], **sizes(inputs)).pooler_output
            kept = handle.trace.visual_tokens
        assert attributes(model) == left
        assert torch.equal(model(**inputs).logits, before)
    assert all(torch.equal(a, b) for a, b in zip(merged, both, strict=True))
    assert all(tokens.tokens < tokens.all_tokens for tokens in kept)
    assert torch.isfinite(logits[inputs["attention_mask"] == 1]).all()


def sizes(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in inputs.items() if k in ("image_sizes", "batch_num_images")}
