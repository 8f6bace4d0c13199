"""Dropping tokens between layers equals hiding them from the later layers, and shortens what those layers keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import tokred

from . import zoo_multimodal as zoo

FAMILIES = [kind.name for kind in zoo.KINDS if kind.decoder]
METHODS = sorted(tokred.methods("decoder"))
PLAIN = [name for name in METHODS if name != "sparsevlm"]  # which also merges some tokens
# plain decoders, positions with several axes, masks that look both ways, features for later layers, latent attention
STRUCTURES = ("Llava", "Qwen2VL", "PaliGemma", "Qwen3VL", "Kimi_K25")


def cases(methods: list[str]) -> list[Any]:
    """All methods for one family of every structure, one method for the others."""
    full = pytest.mark.full
    return [
        pytest.param(name, method, marks=() if name in STRUCTURES or method == "fastv" else full)
        for name in FAMILIES
        for method in methods
    ]


def alive_in_layers(handle: Any, tokens: int) -> list[Tensor]:
    """For every layer, [B, T] bool: which tokens of the whole prompts it sees."""
    passage = handle.language.last
    places = torch.arange(tokens).expand(len(passage.valid), -1)
    alive = [passage.valid] * len(handle.language.model.layers)
    for stage in passage.stages:
        places = places.gather(1, stage.map.kept)
        there = torch.zeros(len(places), tokens + 1, dtype=torch.bool)
        there.scatter_(1, torch.where(stage.valid, places, tokens), True)
        alive[stage.layer :] = [there[:, :tokens]] * (len(alive) - stage.layer)
    return alive


@torch.no_grad()
def hidden_logits(model: Any, inputs: dict[str, Any], alive: list[Tensor], prompt: int) -> Tensor:
    """Logits of the unpatched model whose layers do not see some tokens; ``prompt`` tokens are no answer."""
    language = getattr(model.model, "language_model", None) or model.model.text_model
    tokens = inputs["input_ids"].shape[1]
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    if model.config.model_type == "paligemma":
        before = torch.arange(tokens) < prompt
        seen = seen | (before[:, None] & before)  # a prompt looks both ways
    hooks = []
    for layer, there in zip(language.layers, alive, strict=True):
        mask = (seen & there[:, None, None]) | torch.eye(tokens, dtype=torch.bool)
        hooks.append(
            layer.register_forward_pre_hook(
                lambda _m, args, kwargs, mask=mask: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
            )
        )
    try:
        return model(**inputs, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(("name", "method"), cases(PLAIN))
def test_dropping_equals_hiding(name: str, method: str):
    model = zoo.build(name)
    inputs = zoo.prompts(name, model, [1, 2, 0])
    with torch.no_grad(), tokred.patch(model, tokred.create_method(method)) as handle:
        logits = model(**inputs).logits
        alive = alive_in_layers(handle, inputs["input_ids"].shape[1])
    expected = hidden_logits(model, inputs, alive, inputs["input_ids"].shape[1])
    there = alive[-1]
    assert int(there.sum()) < int(inputs["attention_mask"].sum())
    torch.testing.assert_close(logits[there], expected[there], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "method"), cases(METHODS))
def test_generating_behind_it_equals_running_the_longer_prompt_again(name: str, method: str):
    """What was generated, given as a part of the prompt behind the decision, has the same logits."""
    model = zoo.build(name)
    inputs = zoo.prompts(name, model, [1, 2])
    with torch.no_grad(), tokred.patch(model, tokred.create_method(method)) as handle:
        out = model.generate(
            **inputs,
            max_new_tokens=4,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            suppress_tokens=[zoo.IMAGE],
        )
        prompt = inputs["input_ids"].shape[1]
        new = out.sequences.shape[1] - prompt
        longer = {**inputs, "input_ids": out.sequences}
        for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 1)):
            if key in inputs:
                longer[key] = torch.nn.functional.pad(inputs[key], (0, new), value=value)
        if method == "sparsevlm":  # hiding is not all that it does: in one go, the answer given as drafts
            cache = DynamicCache(config=model.config.get_text_config())
            expected = model(**longer, past_key_values=cache, logits_to_keep=new + 1).logits[:, :-1]
        else:
            alive = alive_in_layers(handle, prompt)
    if method != "sparsevlm":
        grown = [torch.nn.functional.pad(a, (0, new), value=True) for a in alive]
        expected = hidden_logits(model, longer, grown, prompt)[:, -new - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_in_a_batch_is_treated_as_it_is_alone(method: str):
    model = zoo.build("Llava")
    batch = zoo.prompts("Llava", model, [1, 2])
    alone = zoo.prompts("Llava", model, [1])
    with torch.no_grad(), tokred.patch(model, tokred.create_method(method)):
        together = model(**batch).logits[0, -3:]
        single = model(**alone).logits[0, -3:]
    torch.testing.assert_close(together, single, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_later_layers_keep_less_in_the_cache(method: str):
    model = zoo.build("Llava")
    inputs = zoo.prompts("Llava", model, [1])
    with torch.no_grad(), tokred.patch(model, tokred.create_method(method)) as handle:
        cache = model(**inputs, use_cache=True).past_key_values
        counts = handle.trace.tokens_per_layer[0]
    lengths = [cache.get_seq_length(i) for i in range(4)]
    assert lengths[0] == inputs["input_ids"].shape[1]
    assert lengths[-1] < lengths[0]
    text = int((inputs["input_ids"] != zoo.IMAGE).sum())
    if method != "sparsevlm":
        assert lengths == [text + n for n in counts]


def test_methods_at_both_places_compose():
    model = zoo.build("LlavaNext")
    inputs = zoo.prompts("LlavaNext", model, [1, 2])
    with torch.no_grad(), tokred.patch(model, tokred.FoPru(keep=0.5), tokred.FastV(layer=2, keep=0.5)) as handle:
        sequences = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        kept = handle.trace.visual_tokens
        per_layer = handle.trace.tokens_per_layer
    assert all(tokens.at_end < tokens.tokens < tokens.all_tokens for tokens in kept)
    assert [row[0] for row in per_layer] == [kept[0].tokens, kept[1].tokens + kept[2].tokens]
    assert sequences.shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("name", [kind.name for kind in zoo.KINDS if not kind.decoder])
def test_layers_that_are_not_plain_are_refused(name: str):
    model = zoo.build(name)
    with pytest.raises(tokred.UnsupportedModelError, match="layers of other kinds"):
        tokred.patch(model, tokred.FastV(layer=2))
    assert "forward" not in vars(model.model)
