"""transformers' vision encoders, built from small configs: the promises of a patch, and what surrounds an encoder."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
import transformers as hf

import tokred
from tokred.adapters import find_tower
from tokred.adapters.huggingface_blocks import FAMILIES
from tokred.errors import UnsupportedModelError

from . import zoo_huggingface as zoo
from .promises import difference, keeps_promises, last_tokens, run, survivors_are_exact

NAMES = list(zoo.MODELS)
POOLED = [name for name in NAMES if name not in zoo.DENSE + zoo.UNPOOLED]
OTHERS = [name for name in tokred.methods() if name != "tome"]


def test_every_family_has_a_model_in_the_zoo():
    found = {find_tower(zoo.build(name)).encoder.config.model_type for name in NAMES}
    assert found == set(FAMILIES) - zoo.NAMELESS - zoo.NEWER


@pytest.mark.parametrize("name", NAMES)
def test_tome_keeps_its_promises_on_every_family(name):
    keeps_promises(zoo.build(name), tokred.ToMe(r=4), zoo.images(name))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in zoo.EAGER_ONLY])
def test_survivors_are_exact_on_every_family(name):
    survivors_are_exact(zoo.build(name), zoo.images(name))


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("name", [n for n in NAMES if n != "aimv2"])
def test_every_method_keeps_its_promises_on_every_family(name, method):
    keeps_promises(zoo.build(name), tokred.methods()[method](), zoo.images(name))


@pytest.mark.parametrize("method", [m for m in OTHERS if m != "ats"])
def test_every_method_with_fixed_counts_keeps_its_promises_with_a_pool_that_takes_no_mask(method):
    keeps_promises(zoo.build("aimv2"), tokred.methods()[method](), zoo.images("aimv2"))


def test_ats_says_that_a_pool_without_mask_cannot_take_ragged_batches():
    with pytest.raises(UnsupportedModelError, match="takes no mask"):
        tokred.patch(zoo.build("aimv2"), tokred.ATS())


@pytest.mark.parametrize("name", POOLED)
def test_a_merged_token_counts_in_the_pool_for_all_of_its_patches(name):
    model, x = zoo.build(name), zoo.images(name)
    with tokred.patch(model, tokred.ToMe(r=9)):
        by_size = run(model, x)
    with tokred.patch(model, tokred.ToMe(r=9), full_length=True):
        by_copies = run(model, x)
    torch.testing.assert_close(by_size, by_copies, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["vit", "siglip", "dinov3", "beit", "blip2", "sapiens2", "yolos", "vjepa2", "mlcd", "llama4"]
)
@pytest.mark.parametrize("method", ["tome", "topk", "zerotprune"])
def test_eager_and_sdpa_attention_agree(name, method):
    outputs = []
    for attention in ("eager", "sdpa"):
        model = zoo.build(name, attention)
        with tokred.patch(model, tokred.methods()[method]()):
            outputs.append(run(model, zoo.images(name)))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_the_attention_implementation_may_change_while_patched():
    model, x = zoo.build("vit"), zoo.images("vit")
    with tokred.patch(model, tokred.TopK()):
        before = run(model, x)
        model.set_attn_implementation("eager")
        assert model(**x, output_attentions=True).attentions[0] is not None, "only eager attention returns its weights"
        torch.testing.assert_close(run(model, x), before, rtol=1e-4, atol=1e-5)


def test_kernels_without_masks_hand_over_to_sdpa_where_sizes_count(monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def flash(module, query, key, value, attention_mask, **kwargs):
        assert attention_mask is None, "flash attention takes no additive mask"
        calls.append(query.shape[2])
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None, **kwargs)

    calls: list[int] = []
    model, x = zoo.build("vit"), zoo.images("vit")
    with tokred.patch(model, tokred.ToMe(r=8)):
        expected = run(model, x)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
    model.config._attn_implementation_internal = "flash_attention_2"
    with tokred.patch(model, tokred.ToMe(r=8), verify=False):
        torch.testing.assert_close(run(model, x), expected, rtol=1e-4, atol=1e-5)
    assert calls == [65], "the first block has no sizes yet"


def test_patches_that_a_masked_autoencoder_shuffles_are_not_drawn():
    model = zoo.build("vit-mae")
    with tokred.patch(model, tokred.ToMe(r=8), trace=True) as handle:
        run(model, zoo.images("vit-mae"))
        assert handle.trace.tokens_per_layer[-1] == 41
        with pytest.raises(ValueError, match="do not come row by row"):
            handle.trace.overlay(torch.zeros(2, 3, 64, 64))


def test_two_models_of_one_config_stay_independent():
    config = hf.ViTConfig(**zoo.SMALL, **zoo.MLP, num_labels=7)
    first, second = (hf.ViTForImageClassification(config).eval() for _ in range(2))
    assert first.config is second.config
    x = zoo.images("vit")
    before, text = run(second, x), config.to_json_string()
    with tokred.patch(first, tokred.TopK(keep=0.5)):
        assert torch.equal(run(second, x), before)
        assert config.to_json_string() == text
        with tokred.patch(second, tokred.ToMe(r=8)):
            assert difference(run(second, x), before) > 1e-4
        assert torch.equal(run(second, x), before)


# these give none, or squares, or those of the layers behind as well
@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("vitpose", "ovis2", "gemma4", "videoprism", *zoo.QUERIES, *zoo.PACKED)]
)
def test_hidden_states_are_short_or_of_full_length_on_request(name):
    model, x = zoo.build(name), zoo.images(name)
    tokens = find_tower(model).shape.num_tokens
    if name not in zoo.DENSE:
        with tokred.patch(model, tokred.ToMe(r=4)):
            lengths = [h.shape[1] for h in model(**x, output_hidden_states=True).hidden_states]
            assert lengths == [tokens, tokens - 4, tokens - 8, tokens - 12]
    with tokred.patch(model, tokred.ToMe(r=4), trace=True, full_length=True) as handle:
        found = model(**x, output_hidden_states=True).hidden_states
        slot = handle.trace.slot(2)
    assert [h.shape[1] for h in found] == [tokens] * 4
    together = slot[0] == slot[0, :, None]
    assert together.sum() > tokens, "some tokens were merged"
    rows = found[-1][0]
    assert all(torch.equal(rows[i], rows[j]) for i, j in together.nonzero().tolist()), "merged tokens share one row"


def dense_models() -> list[Any]:
    small = {**zoo.SMALL, **zoo.MLP}
    depth = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8, "num_hidden_layers": 4}
    clip = {**small, "num_frames": 4, "patch_size": 16}
    decoder = {"decoder_num_hidden_layers": 1, "decoder_hidden_size": 24, "decoder_num_attention_heads": 2}
    pose = {**zoo.SMALL, "mlp_ratio": 2, "image_size": [64, 64], "patch_size": [8, 8], "out_features": ["stage3"]}
    backbone = {**zoo.SMALL, "mlp_ratio": 2, "out_features": ["stage1", "stage3"]}
    models = [
        (hf.ViTForMaskedImageModeling, hf.ViTConfig(**small, encoder_stride=8)),
        (hf.ViTMAEForPreTraining, hf.ViTMAEConfig(**small, mask_ratio=0.5, decoder_num_hidden_layers=1)),
        (hf.Dinov2Backbone, hf.Dinov2Config(**backbone)),
        (hf.BeitForMaskedImageModeling, hf.BeitConfig(**small, vocab_size=50)),
        (hf.DPTForDepthEstimation, hf.DPTConfig(**{**small, **depth}, backbone_out_indices=[0, 1, 2, 3])),
        (hf.VitPoseForPoseEstimation, hf.VitPoseConfig(backbone_config=hf.VitPoseBackboneConfig(**pose), num_labels=5)),
        (hf.VideoMAEForVideoClassification, hf.VideoMAEConfig(**clip, use_mean_pooling=False)),
        (hf.VideoMAEForPreTraining, hf.VideoMAEConfig(**clip, **decoder)),
    ]
    return [pytest.param(*model, id=model[0].__name__) for model in models]


def tensors(output: Any) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else [t for part in output for t in tensors(part)]


@pytest.mark.parametrize(("model_class", "config"), dense_models())
def test_dense_models_get_a_row_for_every_patch(model_class, config):
    model = model_class(config).eval()
    x: dict[str, Any] = zoo.images("videomae" if "VideoMAE" in model_class.__name__ else "vit")
    if model_class is hf.ViTMAEForPreTraining:
        x["noise"] = torch.rand(2, 64)
    if model_class is hf.VideoMAEForPreTraining:
        x["bool_masked_pos"] = (torch.arange(32) % 2 == 0).expand(2, -1)
    with torch.no_grad():
        whole = model(**x).to_tuple()
        with tokred.patch(model, tokred.ToMe(r=4), trace=True) as handle:
            reduced = model(**x).to_tuple()
            tokens, state = handle.trace.tokens_per_layer, handle.trace.state
    assert tokens[-1] == state.num_initial - 4 * len(tokens)
    assert [t.shape for t in tensors(reduced)] == [t.shape for t in tensors(whole)]
    before, after = (torch.cat([part.flatten() for part in tensors(o)]) for o in (whole, reduced))
    assert difference(after, before) > 1e-6


@pytest.mark.parametrize("full_length", [False, True])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("dinov3", tokred.ToMe(r=8)),
        ("beit", tokred.ToMe(r=[8, 0, 8])),
        ("beit", tokred.TopK(layers=(0,))),
        ("siglip", tokred.TopK(layers=(1,))),
        ("blip2", tokred.ToMe(r=8)),
        ("yolos", tokred.ToMe(r=8)),
        ("videomae", tokred.ToMe(r=2)),
        ("vjepa2", tokred.ToMe(r=2)),
        ("mlcd", tokred.ToMe(r=8)),
    ],
)
def test_checkpointing_gives_the_same_gradients(name, method, full_length):
    gradients = []
    for checkpointing in (False, True):
        model, calls = zoo.build(name).train(), []
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        tower = find_tower(model)
        for block in tower.blocks:
            norm = next(m for n, m in block.named_modules() if "norm" in n)
            norm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)  # for stochastic depth, and for the noise that DINOv3 adds to positions
        with tokred.patch(model, method, full_length=full_length, verify=False):
            calls.clear()  # a run that counts the cost
            output = model(**zoo.images(name))
            (output.logits if "logits" in output else output.pooler_output).square().sum().backward()
        assert len(calls) == (6 if checkpointing else 3), "every block runs again in backward"
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "method"),
    [("siglip", tokred.TopK(keep=0.5)), ("blip2", tokred.ToMe(r=8)), ("vjepa2", tokred.ToMe(r=2))],
)
def test_threads_do_not_see_each_other(name, method):
    model = zoo.build(name)
    inputs = [zoo.images(name, batch) for batch in (1, 2, 3, 4)]
    found: dict[int, torch.Tensor] = {}
    with tokred.patch(model, method):
        expected = [run(model, x) for x in inputs]
        threads = [threading.Thread(target=lambda i=i: found.update({i: run(model, inputs[i])})) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.allclose(found[i], expected[i], atol=1e-5) for i in range(4))


def test_images_of_different_shapes_are_reduced_as_they_are_alone():
    model = zoo.build("siglip2")
    whole = zoo.images("siglip2", 1)
    small = {key: value.clone() for key, value in zoo.images("siglip2", 1).items()}
    small["spatial_shapes"] = torch.tensor([[5, 6]])
    small["pixel_attention_mask"][:, 30:] = 0
    small["pixel_values"][:, 30:] = 7.0
    other = {**small, "pixel_values": small["pixel_values"].clone()}
    other["pixel_values"][:, 30:] = -3.0
    batch = {key: torch.cat([whole[key], small[key]]) for key in whole}
    with tokred.patch(model, tokred.ToMe(r=3)):
        torch.testing.assert_close(
            run(model, batch), torch.cat([run(model, whole), run(model, small)]), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(run(model, small), run(model, other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", zoo.MASKED)
def test_what_a_patch_mask_hides_changes_nothing(name):
    model, x = zoo.build(name), zoo.images(name)
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask[1, 5:], mask[1, :, 6:] = False, False
    outside = ~mask.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    other = x["pixel_values"].masked_fill(outside[:, None], 3.0)
    with torch.no_grad(), tokred.patch(model, tokred.ToMe(r=3), full_length=True):
        outputs = [model(pixels, patch_attention_mask=mask) for pixels in (x["pixel_values"], other)]
    torch.testing.assert_close(*[o.last_hidden_state[mask.flatten(1)] for o in outputs], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [m for m in tokred.methods() if m != "ats"])
def test_of_every_image_something_is_left(method):
    model, x = zoo.build("siglip2"), zoo.images("siglip2", 3)
    x["spatial_shapes"] = torch.tensor([[8, 8], [5, 6], [1, 2]])
    x["pixel_attention_mask"] = (torch.arange(64) < torch.tensor([[64], [30], [2]])).long()
    other = {**x, "pixel_values": x["pixel_values"].masked_fill(x["pixel_attention_mask"][:, :, None] == 0, 5.0)}
    for full_length in (False, True):
        with tokred.patch(model, tokred.create_method(method), full_length=full_length):
            found = run(model, x)
            assert torch.isfinite(found).all()
            torch.testing.assert_close(run(model, other), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [m for m in tokred.methods() if m not in ("ats", "diffrate", "evit")])
def test_a_pool_without_mask_sees_no_dropped_token_in_full_length(method):
    model, x = zoo.build("aimv2"), zoo.images("aimv2")
    outputs = []
    for full_length in (False, True):
        with tokred.patch(model, tokred.create_method(method), full_length=full_length):
            outputs.append(run(model, x))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_the_predictor_of_vjepa_gets_a_row_for_every_patch():
    knobs = {**zoo.SMALL, **zoo.MODELS["vjepa2"][2]}
    del knobs["image_size"]
    model, x = hf.VJEPA2Model(hf.VJEPA2Config(**knobs)).eval(), zoo.images("vjepa2")
    with torch.no_grad():
        whole = model(**x).predictor_output.last_hidden_state
        with tokred.patch(model, tokred.ToMe(r=4), trace=True) as handle:
            reduced = model(**x).predictor_output.last_hidden_state
            assert handle.trace.tokens_per_layer == [28, 24, 20]
    assert reduced.shape == whole.shape
    assert difference(reduced, whole) > 1e-6


def test_padding_of_gemma_changes_nothing():
    model, x = zoo.build("gemma4"), zoo.images("gemma4", 1)
    small = {key: value.clone() for key, value in x.items()}
    small["pixel_position_ids"][:, 512:] = -1
    small["pixel_values"][:, 512:] = 7.0
    other = {**small, "pixel_values": small["pixel_values"].clone()}
    other["pixel_values"][:, 512:] = -3.0
    batch = {key: torch.cat([x[key], small[key]]) for key in x}
    with torch.no_grad(), tokred.patch(model, tokred.ToMe(r=9)):
        alone, short, same, both = (model(**inputs).last_hidden_state for inputs in (x, small, other, batch))
    torch.testing.assert_close(short, same, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both, torch.cat([alone, short]), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("unlimited-ocr" not in zoo.MODELS, reason="it came after transformers 5.18")
def test_an_encoder_that_takes_a_feature_map_is_found_in_the_model_that_makes_the_map():
    from transformers.models.unlimited_ocr.modeling_unlimited_ocr import (
        UnlimitedOcrVisionConfig,
        UnlimitedOcrVisionModel,
    )

    small = {key: value for key, value in zoo.SMALL.items() if key != "image_size"}
    sam = {**small, "image_size": 128, "mlp_dim": 48, "output_channels": 16, "downsample_channels": [24, 48]}
    config = UnlimitedOcrVisionConfig(sam_config=sam, encoder_config={**zoo.SMALL, **zoo.MLP})
    model, x = UnlimitedOcrVisionModel(config).eval(), torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        whole = model(x).last_hidden_state
        with tokred.patch(model, tokred.ToMe(r=4), trace=True) as handle:
            assert type(handle.tower.module).__name__ == "UnlimitedOcrVisionEncoder"
            reduced = model(x).last_hidden_state
            assert handle.trace.tokens_per_layer == [13, 9, 5]
    assert reduced.shape == whole.shape
    assert difference(reduced, whole) > 1e-6


def test_a_patched_model_survives_pickling_into_another_process(tmp_path):
    model, x = zoo.build("vit"), zoo.images("vit")
    with tokred.patch(model, tokred.TopK(keep=0.5)):
        torch.save((model, x, run(model, x)), tmp_path / "patched.pt")
    code = """
import sys, torch
model, x, expected = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    assert torch.allclose(model(**x).logits, expected, atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "patched.pt")], check=True)


def test_a_dense_model_with_two_encoders_gets_the_full_length():
    vision = {**zoo.SMALL, **zoo.MLP}
    text = {**zoo.TEXT, "max_position_embeddings": 16, "eos_token_id": 99}
    config = hf.CLIPSegConfig(
        vision_config=vision,
        text_config=text,
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    model = hf.CLIPSegForImageSegmentation(config).eval()
    x = {**zoo.images("clip"), "input_ids": torch.tensor([[1, 5, 99], [1, 6, 99]])}
    with torch.no_grad():
        whole = model(**x).logits
        with tokred.patch(model, tokred.ToMe(r=8)):
            reduced = model(**x).logits
    assert reduced.shape == whole.shape
    assert difference(reduced, whole) > 1e-5


def test_a_clip_model_is_patched_in_its_vision_tower_and_saved_as_unpatched(tmp_path):
    vision = {**zoo.SMALL, **zoo.MLP}
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = hf.CLIPConfig(
        vision_config=vision, text_config={**text, "vocab_size": 100, "eos_token_id": 99}, projection_dim=16
    )
    model = hf.CLIPModel(config).eval()
    ids, x = torch.tensor([[1, 5, 6, 99]]), zoo.images("clip")
    with torch.no_grad():
        words, pictures = model.get_text_features(ids).pooler_output, model.get_image_features(**x).pooler_output
        with tokred.patch(model, tokred.ToMe(r=8)) as handle:
            assert type(handle.tower.encoder).__name__ == "CLIPVisionModel"
            assert torch.equal(model.get_text_features(ids).pooler_output, words)
            assert difference(model.get_image_features(**x).pooler_output, pictures) > 1e-4
            model.save_pretrained(tmp_path / "patched")
        model.save_pretrained(tmp_path / "plain")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "patched" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert "tokred" not in json.dumps(json.loads((tmp_path / "patched" / "config.json").read_text()))


def test_a_patched_model_can_be_copied():
    model, x = zoo.build("dinov2"), zoo.images("dinov2")
    with tokred.patch(model, tokred.TopK(keep=0.5)):
        twin = copy.deepcopy(model)
        assert torch.equal(run(twin, x), run(model, x))
    assert last_tokens(model, x).shape[1] == 65
    assert difference(run(twin, x), run(model, x)) > 1e-4, "the copy keeps its patch"
    tokred.unpatch(twin)
    assert torch.equal(run(twin, x), run(model, x))


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, "tome") for name in NAMES if name != "siglip2"]  # its size is that of its input
    + [(name, method) for name in ("vit", "clip", "siglip", "dinov3", "beit") for method in ("evit", "diffrate")],
)
def test_the_analytic_cost_agrees_with_a_counter_that_runs_the_model(name, method):
    from torch.utils.flop_counter import FlopCounterMode

    model = zoo.build(name, **zoo.LARGER, image_size=zoo.side(name, 128)).requires_grad_(False)
    handle = tokred.patch(model, tokred.create_method(method), verify=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        handle.tower.run(handle.tower.example())
    assert handle.cost.macs == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


def test_other_models_are_refused_by_name():
    swin = hf.SwinForImageClassification(
        hf.SwinConfig(image_size=64, patch_size=4, embed_dim=24, depths=[1, 1], num_heads=[2, 2], window_size=4)
    )
    with pytest.raises(UnsupportedModelError, match="SwinForImageClassification"):
        tokred.patch(swin, tokred.ToMe(r=4))
    siglip2 = hf.Siglip2ForImageClassification(
        hf.Siglip2Config(vision_config={**zoo.SMALL, **zoo.MLP, "num_patches": 64})
    )
    with pytest.raises(UnsupportedModelError, match="Siglip2ForImageClassification averages"):
        tokred.patch(siglip2, tokred.ToMe(r=4))


@pytest.mark.parametrize(
    ("model_class", "config_class", "knobs", "sentence"),
    [
        (hf.YolosModel, hf.YolosConfig, {**zoo.MLP, "image_size": [64, 64]}, "between its blocks"),
        (hf.VitPoseBackbone, hf.VitPoseBackboneConfig, {"num_experts": 2, "part_features": 8}, "one of 2 experts"),
        (hf.Phi4MultimodalVisionModel, hf.Phi4MultimodalVisionConfig, zoo.MLP, "causally under SDPA"),
        (
            hf.SamVisionModel,
            hf.SamVisionConfig,
            {"mlp_dim": 96},
            "no adapter for blocks of class SamVisionLayer",
        ),
    ],
)
def test_models_of_known_make_that_would_come_out_wrong_are_refused_with_the_reason(
    model_class, config_class, knobs, sentence
):
    model = model_class(config_class(**{**zoo.SMALL, **knobs}))
    with pytest.raises(UnsupportedModelError, match=sentence):
        tokred.patch(model, tokred.ToMe(r=4))


def test_images_packed_into_one_sequence_are_refused():
    model, x = zoo.build("radio"), torch.randn(24, 3 * 8 * 8)
    packed = {"pixel_values": x, "image_grid_hw": torch.tensor([[4, 4], [2, 4]])}
    model(**packed)
    with tokred.patch(model, tokred.TopK()), pytest.raises(UnsupportedModelError, match="image_grid_hw"):
        model(**packed)


def test_detection_tokens_behind_the_patches_are_never_reduced():
    model, x = zoo.build("yolos"), zoo.images("yolos")
    with tokred.patch(model, tokred.TopK(keep=0.3), trace=True) as handle:
        assert handle.tower.shape.num_prefix == 7
        run(model, x)
        slot = handle.trace.slot(2)
    assert (slot[:, [0, *range(-6, 0)]] >= 0).all()
    assert (slot[:, 1:-6] < 0).any(dim=1).all()


def test_an_attention_without_interface_is_refused_and_the_model_left_alone():
    model, x = zoo.build("vit"), zoo.images("vit")

    class Attention(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.num_heads, self.head_dim = inner, 3, 16

        def forward(self, hidden_states, attention_mask=None, **kwargs):
            return self.inner(hidden_states, attention_mask, **kwargs)

    for layer in model.vit.layers:
        layer.attention = Attention(layer.attention)
    before = run(model, x)
    with pytest.raises(UnsupportedModelError, match="AttentionInterface"):
        tokred.patch(model, tokred.ToMe(r=4))
    assert torch.equal(run(model, x), before)
    with tokred.patch(model, tokred.Random()):
        assert difference(run(model, x), before) > 1e-4


def test_a_block_of_another_make_is_refused():
    model = zoo.build("vit")
    model.vit.layers[1].adapter = torch.nn.Linear(48, 48)
    with pytest.raises(UnsupportedModelError, match=r"unknown parts \['adapter'\]"):
        tokred.patch(model, tokred.ToMe(r=4))


@pytest.mark.parametrize("name", ["vit", "siglip", "dinov3"])
def test_a_patched_encoder_compiles_into_one_graph(name):
    model, x = zoo.build(name), zoo.images(name)
    with tokred.patch(model, tokred.ToMe(r=4)):
        expected = run(model, x)
        torch.compiler.reset()
        model.compile(fullgraph=True, backend="eager")
        torch.testing.assert_close(run(model, x), expected)


def test_export_keeps_the_reduction():
    model, x = zoo.build("vit"), zoo.images("vit")
    with tokred.patch(model, tokred.ToMe(r=4)):
        expected = run(model, x)
        exported = torch.export.export(model, (), x).module()
    torch.testing.assert_close(exported(**x).logits, expected)
