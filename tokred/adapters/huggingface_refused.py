"""Why the other encoders of transformers that use its shared attention cannot be reduced, by ``model_type``."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokred.adapters.huggingface_attention import is_pretrained

_BEHIND = "Take a method that acts behind the encoder, such as tokred.FoPru or tokred.VisionZip, on the whole model."
_OTHER = "Take an encoder in whose blocks every patch sees every other, such as DINOv2 or SigLIP."

_REASONS: dict[str, tuple[str, ...]] = {
    f"attends in windows in most of its blocks, so that every patch must stay in its place in the grid. {_BEHIND}": (
        "exaone4_5_vision",
        "muse_glimmer_vision",
        "muse_spark_vision",
        "qwen2_5_omni_vision_encoder",
        "qwen2_5_vl_vision",
    ),
    f"makes one token of several between its blocks, by their places in the grid. {_BEHIND}": (
        "minicpm_ocr_vision",
        "minicpmv4_6_vision",
        "minicpmv4_7_vision",
    ),
    "attends in windows, or pools its tokens from stage to stage, so that every token must stay in its place in the "
    f"grid. {_OTHER}": (
        "florence_vision",
        "lw_detr_vit",
        "rf_detr_dinov2",
        "sam2_hiera_det_model",
        "sam3_vit_model",
        "segformer",
        "swin",
    ),
    "attends on a feature map that other layers made, of which every place must stay. If it has a backbone that can be "
    "chosen, take one that is supported, such as DINOv2, and patch that.": (
        "conditional_detr",
        "d_fine",
        "deformable_detr",
        "deimv2",
        "detr",
        "efficientloftr",
        "emu3_vqgan",
        "maskformer",
        "pp_doclayout_v2",
        "pp_doclayout_v3",
        "pp_doclayout_v4",
        "pp_formulanet",
        "pp_ocrv5_mobile_rec",
        "pp_ocrv5_server_rec",
        "pp_ocrv6_small_rec",
        "rt_detr",
        "rt_detr_v2",
        "sam3_detr_decoder",
        "sam3_detr_encoder",
        "sam3_lite_text_detr_decoder",
        "sam3_lite_text_detr_encoder",
    ),
    "attends in its decoder of masks, which reads the whole feature map of an image encoder that works in windows or "
    f"by convolutions. {_OTHER}": (
        "edgetam",
        "edgetam_video",
        "sam",
        "sam2",
        "sam2_video",
        "sam3_tracker",
        "sam3_tracker_video",
        "sam_hq",
    ),
    f"sends the patches of its last blocks to different experts, whose cost is not known here. {_BEHIND}": (
        "dots3_note_vision_encoder",
    ),
    "convolves over the grid of the patches in some of its blocks, so that every patch must stay in its place. "
    f"{_BEHIND}": ("lfm3_vl_vision",),
    "sends words and pictures through the same layers, so there is no stack of blocks over patches alone. Take a "
    "multimodal model with an image encoder of its own, such as LLaVA.": (
        "chameleon",
        "neomme",
        "udop",
    ),
    "attends to patches by nn.MultiheadAttention; transformers' interface is only used where words and pictures meet. "
    f"{_OTHER}": ("bridgetower",),
    "reads pictures in a vision transformer that is no PreTrainedModel, so that it cannot be run by itself and tried. "
    f"{_BEHIND}": ("idefics",),
    "has tokens that stand for whole frames, each made of what an image model gave for it. Patch the image model "
    "inside, if it is supported: model.embedder.vision_model.": ("pe_audio_video_encoder", "pe_video_encoder"),
    "adds a message to the keys of every block, made of the class tokens of all frames, for which a reduced sequence "
    "has no place. Take an encoder of one sequence, such as V-JEPA 2 or VideoMAE.": ("xclip_vision_model",),
    "has tokens that are keypoints of two pictures, and no patches. Reduce their number when they are detected.": (
        "lightglue",
    ),
    "has patches that are pieces of text, and tokred reduces tokens of pictures.": (
        "blt_local_decoder",
        "blt_local_encoder",
    ),
    "asks the registry of attention functions in a way that always finds the eager one, so its queries and keys cannot "
    f"be read. {_BEHIND}": ("kosmos_2_5_vision_model",),
    "makes one sequence of the tiles of an image, runs it through two stacks with embeddings of tiles in between, and "
    f"hands out states from inside the first. {_BEHIND}": ("mllama_vision_model",),
    "attends causally under SDPA, but to all patches under eager attention and beside an image with padding, so it is "
    "not known what a reduced one should compute. "
    f"{_BEHIND}": ("phi4_multimodal_vision",),
    "puts queries behind the feature map of a SAM encoder, which see each other causally and the map as a whole, and "
    f"hands out nothing but them. {_BEHIND}": ("deepseek_ocr2_vision",),
}

REFUSED = {model_type: reason for reason, model_types in _REASONS.items() for model_type in model_types}
"""What encoders do that keeps them from being reduced, and what to try, by the ``model_type`` of their config."""


def refusal(model: nn.Module) -> str:
    """What keeps the encoder in ``model`` from being reduced; empty where that is not known.

    Of several the first is named that holds no other.
    """
    found = {path: m for path, m in model.named_modules() if is_pretrained(m) and _kind(m) in REFUSED}
    for path, module in found.items():
        if not any(other != path and other.startswith(f"{path}." if path else "") for other in found):
            return f"{type(module).__name__} {REFUSED[_kind(module)]}"
    return ""


def _kind(module: Any) -> str:
    return module.config.model_type
