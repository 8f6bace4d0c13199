from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tokred
from tests.adapters import zoo_multimodal as zoo
from tokred.errors import UnsupportedModelError
from tokred.multimodal_cost import prefill_cost


def counted(model: Any, inputs: dict[str, Any]) -> int:
    """MACs of the language model and its head in one prefill, as torch counts them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs, logits_to_keep=1)
    language = next(n for n, _ in model.model.named_children() if n in ("language_model", "text_model"))
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    outer = type(model).__name__
    return (by_module[f"{outer}.model.{language}"] + by_module[f"{outer}.lm_head"]) // 2


def one_prompt(name: str, model: Any) -> tuple[dict[str, Any], int, int]:
    """Inputs, and how many of their tokens are words and visual tokens."""
    inputs = zoo.prompts(name, model, [1])
    visual = int((inputs["input_ids"] == zoo.IMAGE).sum())
    return inputs, inputs["input_ids"].shape[1] - visual, visual


@pytest.mark.parametrize("name", ["Llava", "LlavaNext", "Qwen2VL", "Qwen3VL", "InternVL", "SmolVLM", "Mistral3"])
def test_an_unpatched_prefill_costs_what_torch_counts(name: str):
    model = zoo.build(name)
    inputs, text, visual = one_prompt(name, model)
    assert prefill_cost(model, text, [visual] * 4) == pytest.approx(counted(model, inputs), rel=0.01)


@pytest.mark.parametrize("name", ["Llava", "LlavaNext", "Qwen2VL"])
def test_a_reduced_prefill_costs_what_torch_counts_but_for_the_decision(name: str):
    model = zoo.build(name)
    inputs, text, _ = one_prompt(name, model)
    with tokred.patch(model, tokred.PSigmoid(rates=(1.0, 0.75, 0.75, 0.25))) as handle:
        found = counted(model, inputs)
        (layers,) = handle.trace.tokens_per_layer
        assert layers[0] > layers[1] == layers[2] > layers[3]
        assert prefill_cost(model, text, layers) == pytest.approx(found, rel=0.01)


def test_a_text_without_image_costs_less_with_fewer_layers_of_tokens():
    model = zoo.build("Llava")
    assert prefill_cost(model, 10, [0] * 4) < prefill_cost(model, 10, [5, 0, 0, 0]) < prefill_cost(model, 10, [5] * 4)


def test_a_count_too_few_is_named():
    with pytest.raises(ValueError, match=r"3 token counts were given; the language model has 4 layers"):
        prefill_cost(zoo.build("Llava"), 10, [5] * 3)


def test_a_model_without_language_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="no multimodal model"):
        prefill_cost(torch.nn.Linear(2, 2), 10, [5])


def test_experts_are_refused_since_each_token_sees_only_some():
    model = zoo.build("Llava")
    model.model.language_model.layers[1].mlp.experts = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(UnsupportedModelError, match="Layer 1 of the language model consists of experts"):
        prefill_cost(model, 10, [5] * 4)
