"""Finding the parts of a multimodal model of transformers: what encodes images, what reads the prompt."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokred.adapters.huggingface_attention import can_be_read, is_pretrained
from tokred.errors import UnsupportedModelError

_LANGUAGE = ("language_model", "text_model")
_ENCODER = ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower")


@dataclass(eq=False)
class MultimodalModel:
    """A model that encodes images, puts their features into the places of placeholders, and reads the whole.

    Attributes:
        inner: the module whose forward does that; it has ``get_image_features`` and takes ``mm_encoder_outputs``.
        language: the language model inside, without its head.
        layers: the layers of the language model.
        encoder: what encodes images; ``None`` if it has a name that is not known.
        outer: the model with the head around ``inner``, if there is one.
    """

    inner: Any
    language: Any
    layers: list[Any]
    encoder: nn.Module | None
    outer: Any = None

    @property
    def name(self) -> str:
        """Class of the model, for messages."""
        return type(self.inner).__name__

    @property
    def family(self) -> str:
        """``model_type`` of the config."""
        return self.inner.config.model_type

    @property
    def feature_layers(self) -> tuple[int, ...] | None:
        """Which states of the encoder become features, 0 for its input; ``None``: its output."""
        config = self.inner.config
        layers = getattr(config, "vision_feature_layer", getattr(config, "vision_feature_layers", None))
        return (layers,) if isinstance(layers, int) else tuple(layers) if layers is not None else None

    def attention_of(self, layer: int) -> nn.Module:
        """The attention module of one layer of the language model.

        Raises:
            UnsupportedModelError: its queries and keys cannot be read.
        """
        attn = getattr(self.layers[layer], "self_attn", None)
        if attn is None or not can_be_read(attn):
            raise UnsupportedModelError(
                f"Layer {layer} of {type(self.language).__name__} has no attention that takes its function from "
                "transformers' AttentionInterface, so its queries and keys cannot be read. Try a method that works on "
                "the features before the language model, such as tokred.FoPru."
            )
        return attn


def find_multimodal(model: nn.Module) -> MultimodalModel:
    """Find the one multimodal model in ``model``.

    Raises:
        UnsupportedModelError: there is none.
    """
    for module in model.modules():
        if not is_pretrained(module) or not hasattr(module, "get_image_features"):
            continue
        if "mm_encoder_outputs" not in inspect.signature(type(module).forward).parameters:
            continue
        children = dict(module.named_children())
        language = next((children[name] for name in _LANGUAGE if name in children), None)
        layers = getattr(language, "layers", None)
        if isinstance(layers, nn.ModuleList) and hasattr(module.config, "image_token_id"):
            encoder = next((children[name] for name in _ENCODER if name in children), None)
            outer = next((m for m in model.modules() if any(child is module for child in m.children())), None)
            heads = outer is not None and "logits_to_keep" in inspect.signature(type(outer).forward).parameters
            return MultimodalModel(module, language, list(layers), encoder, outer if heads else None)
    raise UnsupportedModelError(
        f"{type(model).__name__} is no multimodal model that can be patched between its image encoder and its language "
        "model. Supported are models of transformers (5.18 and newer) with get_image_features and mm_encoder_outputs "
        "that place image features among the words of a decoder, such as LLaVA, Qwen2-VL and InternVL. For methods "
        "inside an image encoder, such as tokred.ToMe, other models are supported too."
    )


def forget(module: nn.Module, name: str) -> None:
    """Drop an attribute of an instance; a function of modules, so that copies of a patched model drop their own."""
    vars(module).pop(name, None)


def encoder_attention(encoder: nn.Module | None) -> list[nn.Module]:
    """The attention modules of the blocks of an image encoder, in order; empty where they cannot be read."""
    best: list[nn.Module] = []
    for blocks in encoder.modules() if encoder is not None else ():
        if isinstance(blocks, nn.ModuleList) and len(blocks) > len(best):
            found = [next((m for m in block.modules() if can_be_read(m)), None) for block in blocks]
            if all(attn is not None for attn in found):
                best = [attn for attn in found if attn is not None]
    return best
