"""Models that PEFT has put low-rank adapters into, and models that accelerate has dispatched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import accelerate
import peft
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tokred
from tokred.errors import UnsupportedModelError

from . import zoo, zoo_huggingface, zoo_open_clip
from .promises import difference, run

Build = Callable[[], tuple[nn.Module, Any]]


def timm_model() -> tuple[nn.Module, Any]:
    model = zoo.build("vit_tiny_patch16_224", img_size=64)
    return model, zoo.images(model)


def hugging_face(name: str) -> Build:
    return lambda: (zoo_huggingface.build(name), zoo_huggingface.images(name))


def open_clip(name: str) -> Build:
    return lambda: (zoo_open_clip.build(name).get_submodule("visual"), zoo_open_clip.images())


CASES = {
    "timm": (timm_model, ["qkv", "fc1"]),
    "vit": (hugging_face("vit"), ["q_proj", "k_proj", "v_proj", "fc1"]),
    "siglip": (hugging_face("siglip"), ["k_proj", "fc2"]),
    "yolos": (hugging_face("yolos"), ["key", "value"]),
    "open_clip": (open_clip("class-token"), ["c_fc", "c_proj"]),
}


def adapted(model: nn.Module, targets: list[str]) -> Any:
    """The model with adapters that are not zero."""
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=targets, r=4, lora_alpha=64, init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


@pytest.mark.parametrize("method", [tokred.ToMe(r=3), tokred.ATS(layers=(1,)), tokred.ZeroTPrune()])
@pytest.mark.parametrize("name", CASES)
def test_a_model_with_adapters_is_reduced_as_one_into_which_they_are_merged(name, method):
    build, targets = CASES[name]
    model, x = build()
    plain = run(copy.deepcopy(model), x)
    wrapped = adapted(model, targets)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    before = run(wrapped.get_base_model(), x)
    assert difference(before, plain) > 1e-3, "the adapters do something"
    with tokred.patch(wrapped, method), tokred.patch(merged, method):
        found = run(wrapped.get_base_model(), x)
        assert difference(found, before) > 1e-4, "the method does something"
        torch.testing.assert_close(found, run(merged, x), rtol=1e-4, atol=1e-4)
    assert torch.equal(run(wrapped.get_base_model(), x), before)


@pytest.mark.parametrize("name", ["timm", "vit"])
def test_adapters_learn_through_a_patch(name):
    build, targets = CASES[name]
    model, x = build()
    wrapped = adapted(model, targets).train()
    with tokred.patch(wrapped, tokred.ToMe(r=3)):
        output = wrapped.get_base_model()(**x).logits if name == "vit" else wrapped.get_base_model()(x)
        output.square().sum().backward()
    learning = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    assert learning
    assert all("lora" in n for n in learning)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning.values())


def test_adapters_put_in_behind_a_patch_are_refused_where_keys_would_be_read_without_them():
    model, x = zoo_huggingface.build("vit"), zoo_huggingface.images("vit")
    with tokred.patch(model, tokred.ToMe(r=3)):
        adapted(model, ["k_proj"])
        with pytest.raises(RuntimeError, match=r"k_proj of ViTAttention was replaced .* Wrap the model first"):
            run(model, x)


def test_adapters_around_a_whole_attention_of_torch_are_refused_by_name():
    model: Any = zoo_open_clip.build("class-token").visual
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["attn"], r=4))
    with pytest.raises(UnsupportedModelError, match=r"peft.*MultiheadAttention.*merge_and_unload"):
        tokred.patch(wrapped, tokred.ToMe(r=3))


def test_the_cost_of_a_model_counts_its_linear_layers_once_and_its_adapters_on_top():
    model, x = zoo_huggingface.build("vit", "sdpa", **zoo_huggingface.LARGER), zoo_huggingface.images("vit", 1)
    wrapped = adapted(model, ["q_proj", "k_proj", "v_proj", "fc1"])
    with tokred.patch(wrapped, tokred.ToMe(r=3)) as handle, FlopCounterMode(display=False) as counter:
        run(wrapped.get_base_model(), x)
        assert handle.cost.macs == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


@pytest.mark.parametrize("name", ["timm", "vit"])
def test_a_model_that_accelerate_dispatched_is_refused_by_name_and_left_as_it_was(name):
    model, x = CASES[name][0]()
    before = run(model, x)
    model = accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    with pytest.raises(UnsupportedModelError, match=r"dispatched by accelerate \(device_map\).*one device"):
        tokred.patch(model, tokred.ToMe(r=3))
    assert torch.equal(run(model, x), before)


def test_a_model_that_accelerate_put_on_one_device_is_patched():
    model, x = timm_model()
    model = accelerate.dispatch_model(model, device_map={"": "cpu"})
    before = run(model, x)
    with tokred.patch(model, tokred.ToMe(r=3)):
        assert difference(run(model, x), before) > 1e-4
    assert torch.equal(run(model, x), before)
