"""Encoders of transformers that cannot be reduced say why, and what to take instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.models.blt.modeling_blt import BltLocalEncoder, BltLocalEncoderConfig
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import DeepseekOcr2VisionConfig, DeepseekOcr2VisionModel
from transformers.models.kosmos2_5.modeling_kosmos2_5 import Kosmos2_5VisionConfig, Kosmos2_5VisionModel
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import MiniCPMV4_6VisionConfig, MiniCPMV4_6VisionModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionConfig,
)

import tokred
from tokred.adapters.huggingface_refused import REFUSED
from tokred.errors import UnsupportedModelError

from . import zoo_multimodal
from .promises import assert_same, difference, snapshot

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
PICTURE = {"image_size": 64, "patch_size": 8}
HIDDEN = {"intermediate_size": 48}


def built(model: Any, config: Any, **knobs: Any) -> Callable[[], Any]:
    """Builds a model from a config, both by name, or themselves."""
    return lambda: _named(model)(_named(config)(**knobs))


def _named(thing: Any) -> Any:
    return getattr(hf, thing) if isinstance(thing, str) else thing


RESNET = {
    "backbone_config": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4}
}
DETR = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
TEXT = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TOWER = {"hidden_size": 64, "num_hidden_layers": 1, "image_size": 32, "patch_size": 8}
BRIDGE = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 24}
IDEFICS = {"embed_dim": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 28}
RESNET18 = {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {}}
SAM = {
    **SMALL,
    **PICTURE,
    "mlp_dim": 48,
    "output_channels": 16,
    "global_attn_indexes": [1],
    "downsample_channels": [16, 24],
}
MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "qwen2.5-vl": (
        built(Qwen2_5_VisionTransformerPretrainedModel, Qwen2_5_VLVisionConfig, hidden_size=48, depth=2, num_heads=3),
        "in windows in most of its blocks",
    ),
    "minicpm": (
        built(MiniCPMV4_6VisionModel, MiniCPMV4_6VisionConfig, **SMALL, **PICTURE, insert_layer_id=0),
        "makes one token of several between its blocks",
    ),
    "swin": (
        built("SwinModel", "SwinConfig", image_size=64, embed_dim=24, depths=[1], num_heads=[2]),
        "in windows",
    ),
    "segformer": (
        built(
            "SegformerModel", "SegformerConfig", hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, num_attention_heads=[1] * 4
        ),
        "from stage to stage",
    ),
    "detr": (built("DetrModel", "DetrConfig", use_timm_backbone=False, **RESNET, **DETR), "on a feature map"),
    "sam": (
        built("SamModel", "SamConfig", vision_config={**SMALL, **PICTURE, "mlp_dim": 48, "output_channels": 16}),
        "in its decoder of masks",
    ),
    "bridgetower": (
        built("BridgeTowerModel", "BridgeTowerConfig", vision_config=TOWER, text_config=TEXT, **BRIDGE),
        r"by nn\.MultiheadAttention",
    ),
    "idefics": (built("IdeficsModel", "IdeficsConfig", **TEXT, vision_config=IDEFICS), "no PreTrainedModel"),
    "x-clip": (built("XCLIPVisionModel", "XCLIPVisionConfig", **SMALL, **PICTURE), "class tokens of all frames"),
    "kosmos-2.5": (built(Kosmos2_5VisionModel, Kosmos2_5VisionConfig, **SMALL, head_dim=16), "always finds the eager"),
    "mllama": (
        built(
            "MllamaVisionModel",
            "MllamaVisionConfig",
            **PICTURE,
            hidden_size=48,
            attention_heads=3,
            num_hidden_layers=2,
            num_global_layers=1,
            intermediate_layers_indices=[0],
            supported_aspect_ratios=[[1, 1]],
        ),
        "tiles of an image",
    ),
    "phi4": (
        built("Phi4MultimodalVisionModel", "Phi4MultimodalVisionConfig", **SMALL, **PICTURE, intermediate_size=48),
        "causally under SDPA",
    ),
    "lightglue": (built("LightGlueForKeypointMatching", "LightGlueConfig", **SMALL, descriptor_dim=48), "keypoints"),
    "udop": (
        built("UdopEncoderModel", "UdopConfig", vocab_size=50, d_model=24, d_kv=8, d_ff=24, num_layers=1, num_heads=2),
        "words and pictures",
    ),
    "blt": (built(BltLocalEncoder, BltLocalEncoderConfig, **TEXT), "pieces of text"),
    "pe-video": (
        built(
            "PeVideoEncoder", "PeVideoEncoderConfig", **SMALL, head_dim=16, intermediate_size=48, vision_config=RESNET18
        ),
        "stand for whole frames",
    ),
    "deepseek-ocr-2": (
        built(DeepseekOcr2VisionModel, DeepseekOcr2VisionConfig, sam_config=SAM, encoder_config=TEXT),
        "puts queries behind the feature map",
    ),
}
LATER = {"over the grid of the patches in some of its blocks", "to different experts"}  # came after transformers 5.18
if find_spec("transformers.models.lfm3_vl") and find_spec("transformers.models.dots3_note"):
    from transformers.models.dots3_note.modeling_dots3_note import Dots3NoteVisionConfig, Dots3NoteVisionModel
    from transformers.models.lfm3_vl.modeling_lfm3_vl import Lfm3VlVisionConfig, Lfm3VlVisionModel

    layers = {"num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3}
    convolving = built(Lfm3VlVisionModel, Lfm3VlVisionConfig, hidden_size=48, intermediate_size=48, **layers)
    experts = {"pyramid_num_routed": [-1, 2], "adapter_in_dim": 48, "moe_intermediate_size": 48}
    routing = built(Dots3NoteVisionModel, Dots3NoteVisionConfig, **SMALL, **HIDDEN, **experts)
    MODELS |= dict(zip(("lfm3-vl", "dots3"), zip((convolving, routing), sorted(LATER), strict=True), strict=True))
    LATER = set()


@pytest.mark.parametrize("name", MODELS)
def test_an_encoder_that_cannot_be_reduced_says_why(name):
    build, sentence = MODELS[name]
    model = build().eval()
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=sentence) as raised:
        tokred.patch(model, tokred.ToMe(r=4))
    assert str(raised.value).startswith(f"{type(model).__name__}: ")
    assert_same(model, before)


@pytest.mark.parametrize("name", [n for n in ("Qwen2_5_VL", "Exaone4_5_") if n in zoo_multimodal.BY_NAME])
def test_a_multimodal_model_whose_encoder_attends_in_windows_is_sent_behind_it(name):
    model = zoo_multimodal.build(name)
    with pytest.raises(UnsupportedModelError, match=r"in windows.*tokred\.FoPru"):
        tokred.patch(model, tokred.ToMe(r=4))
    with tokred.patch(model, tokred.FoPru()):
        pass


def test_of_several_encoders_the_innermost_is_named():
    model = hf.SamModel(hf.SamConfig(vision_config={**SMALL, **PICTURE, "mlp_dim": 48, "output_channels": 16}))
    model.backbone = hf.SwinModel(hf.SwinConfig(image_size=64, embed_dim=24, depths=[1], num_heads=[2]))
    with pytest.raises(UnsupportedModelError, match="SamModel: SwinEncoder attends in windows"):
        tokred.patch(model, tokred.ToMe(r=4))


def test_a_known_encoder_in_a_refused_model_is_patched():
    backbone = {"model_type": "dinov2", **SMALL, **PICTURE, "mlp_ratio": 2, "out_features": ["stage2"]}
    model = hf.DetrModel(hf.DetrConfig(use_timm_backbone=False, backbone_config=backbone, **DETR)).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(x).last_hidden_state
        with tokred.patch(model, tokred.ToMe(r=4)) as handle:
            assert type(handle.tower.encoder).__name__ == "Dinov2Backbone"
            reduced = model(x).last_hidden_state
    assert reduced.shape == whole.shape
    assert difference(reduced, whole) > 1e-6


def test_every_reason_is_tried():
    tried = {sentence for _, sentence in MODELS.values()} | LATER
    untried = {reason for reason in REFUSED.values() if not any(re.search(sentence, reason) for sentence in tried)}
    assert not untried
