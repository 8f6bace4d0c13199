"""Text towers of CLIP-like models: the end of the text is protected and found where it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokred
from tokred.errors import UnsupportedModelError

from . import zoo_huggingface, zoo_open_clip
from .promises import assert_same, difference, snapshot

TEXT_METHODS = {
    "pitome": tokred.PiToMe(keep=0.8, modes="text"),
    "tome": tokred.ToMe(r=3),
    "topk": tokred.TopK(keep=0.6, layers=(0, 1)),
    "random": tokred.Random(keep=0.6, layers=(0, 1)),
}


def huggingface(name: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    return zoo_huggingface.build_text(name), lambda model: _text_of(model, zoo_huggingface.texts())


def _text_of(model: Any, x: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        output = model(**x)
    return output.text_embeds if output.get("text_embeds") is not None else output.pooler_output


def open_clip(name: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    model = zoo_open_clip.build(name)
    words = torch.randint(1, 99, (2, 16), generator=torch.Generator().manual_seed(0))
    words[0, 12:], words[1, 7:] = 0, 0
    words[0, 12], words[1, 7] = 99, 99

    @torch.no_grad()
    def encode(model: Any) -> Tensor:
        return model.encode_text(words)

    return model, encode


TOWERS = {
    **{f"transformers-{name}": (huggingface, name) for name in zoo_huggingface.TEXTS},
    "open_clip": (open_clip, "class-token"),
}


@pytest.mark.parametrize("method", TEXT_METHODS.values(), ids=TEXT_METHODS)
@pytest.mark.parametrize("tower", TOWERS)
def test_a_text_tower_keeps_the_promises(tower, method):
    make, name = TOWERS[tower]
    model, encode = make(name)
    before, output = snapshot(model), encode(model)
    with tokred.patch(model, method, tower="text", trace=True) as handle:
        handle.reduction.idle = True
        assert difference(encode(model), output) < 1e-5, "moving tokens around changes nothing"
        handle.reduction.idle = False
        reduced = encode(model)
        tokens = handle.trace.tokens_per_layer
    assert tuple(tokens) == handle.schedule.tokens(handle.tower.shape.num_tokens)
    assert tokens[-1] < handle.tower.shape.num_tokens
    assert difference(reduced, output) > 1e-4
    assert_same(model, before)
    assert torch.equal(encode(model), output)


@pytest.mark.parametrize("tower", ["transformers-clip", "transformers-siglip", "open_clip"])
def test_the_token_that_is_pooled_is_never_merged(tower):
    make, name = TOWERS[tower]
    model, encode = make(name)
    with tokred.patch(model, tokred.ToMe(r=100), tower="text", trace=True) as handle:
        encode(model)
        slot = handle.trace.slot(2)
    ends = [23, 23] if "siglip" in tower else [20, 11] if "transformers" in tower else [12, 7]
    for image, end in enumerate(ends):
        assert (slot[image] == slot[image, end]).sum() == 1
        assert slot[image, end] == 0


def test_causal_texts_do_not_see_what_comes_behind_their_end():
    model = zoo_huggingface.build_text("clip")
    x = zoo_huggingface.texts()
    other = {"input_ids": x["input_ids"].clone()}
    other["input_ids"][0, 21:] = 5
    with tokred.patch(model, tokred.TopK(keep=0.6, layers=(0, 1)), tower="text"):
        torch.testing.assert_close(_text_of(model, x), _text_of(model, other), rtol=1e-4, atol=1e-5)


def test_both_towers_of_one_model_may_be_patched():
    model = zoo_open_clip.build("class-token")
    x = zoo_open_clip.images()
    with torch.no_grad():
        picture = model.encode_image(x)
    with tokred.patch(model, tokred.ToMe(r=8)) as vision, tokred.patch(model, tokred.ToMe(r=2), tower="text") as text:
        assert (vision.tower.family, text.tower.family) == ("open_clip", "open_clip text")
        text.remove()
        with torch.no_grad():
            assert difference(model.encode_image(x), picture) > 1e-4, "the other patch stays"


def test_a_text_tower_that_is_not_there_is_refused():
    vision = zoo_open_clip.build("class-token").visual
    with pytest.raises(UnsupportedModelError, match="has no text tower"):
        tokred.patch(vision, tokred.ToMe(r=2), tower="text")
    with pytest.raises(UnsupportedModelError, match="masks the padding of its texts"):
        tokred.patch(zoo_open_clip.build_coca(), tokred.ToMe(r=2), tower="text")


def test_intermediate_features_of_a_text_end_where_it_ends():
    model = zoo_open_clip.build("class-token")
    words = torch.randint(1, 99, (2, 16), generator=torch.Generator().manual_seed(0))
    words[0, 12:], words[1, 3:] = 0, 0
    words[0, 12], words[1, 3] = 99, 99
    with tokred.patch(model, tokred.ToMe(r=3), tower="text"), torch.no_grad():
        found = model.forward_intermediates(text=words)
        torch.testing.assert_close(found["text_features"], model.encode_text(words, normalize=True))
    assert [f.shape[1] for f in found["text_intermediates"]] == [16] * 3


def test_a_checkpointed_text_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = zoo_open_clip.build("class-token").train()
        model.set_grad_checkpointing(checkpointing)
        words = torch.arange(1, 33).reshape(2, 16)
        with tokred.patch(model, tokred.ToMe(r=3), tower="text", verify=False):
            model.encode_text(words).square().sum().backward()
        gradients.append([p.grad for p in model.transformer.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-6)
