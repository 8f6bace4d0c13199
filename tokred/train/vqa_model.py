"""Small multimodal models of transformers, built from a recipe: the weights untrained, the processor complete."""

import math
import string
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokred.errors import ConfigError, DataError
from tokred.train.config import MultimodalModel

PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<bos>", "<eos>", "<unk>", "<image>"

# What a conversation looks like: the images of a turn, then "question: ... answer:" and the answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% if message['content'] is string %}{{ 'question: ' + message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ ' question: ' + part['text'] + ' ' }}"
    "{% endif %}{% endfor %}{% endif %}"
    "{% else %}{{ 'answer: ' }}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{{ '<eos> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'answer:' }}{% endif %}"
)


def build_tokenizer(words: tuple[str, ...]) -> Any:
    """Return a tokenizer of whole words in lower case; punctuation marks are words, too."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if bad := [word for word in words if word != word.lower() or any(c in word for c in string.whitespace)]:
        raise ConfigError(f"words: {bad[:3]} are no words in lower case without spaces.")
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys((PAD, BOS, EOS, UNKNOWN, IMAGE, *words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_processor(spec: MultimodalModel) -> Any:
    """Return the processor: pictures are made square tiles, texts get as many image tokens as there are features."""
    from transformers import CLIPImageProcessor, LlavaNextImageProcessor, LlavaNextProcessor, LlavaProcessor

    side = spec.vision["image_size"]
    square = {"height": side, "width": side}
    images = {"size": square, "crop_size": square, "do_center_crop": False, "image_mean": list(spec.mean),
              "image_std": list(spec.std)}  # fmt: skip
    rest = {
        "tokenizer": build_tokenizer(spec.words),
        "patch_size": spec.vision["patch_size"],
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,  # the tower's class token, which the strategy takes off again
        "chat_template": CHAT_TEMPLATE,
    }
    if spec.architecture == "llava":
        return LlavaProcessor(CLIPImageProcessor(**images), **rest)
    pinpoints = [[rows * side, columns * side] for rows, columns in spec.grids]
    return LlavaNextProcessor(LlavaNextImageProcessor(image_grid_pinpoints=pinpoints, **images), **rest)


def build_multimodal(spec: MultimodalModel, processor: Any) -> Any:
    """Return the untrained model, in float32.

    Raises:
        ConfigError: arguments that transformers does not take.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
    )

    words = processor.tokenizer
    special = {
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    try:
        vision = CLIPVisionConfig(**spec.vision)
        text = LlamaConfig(**spec.text, **special, vocab_size=len(words), tie_word_embeddings=True)
        common: dict[str, Any] = {
            "vision_config": vision,
            "text_config": text,
            "image_token_id": words.convert_tokens_to_ids(IMAGE),
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "tie_word_embeddings": True,
            **special,
        }
        if spec.architecture == "llava":
            patches = (spec.vision["image_size"] // spec.vision["patch_size"]) ** 2
            model = LlavaForConditionalGeneration(LlavaConfig(**common, image_seq_length=patches))
        else:
            pinpoints = processor.image_processor.image_grid_pinpoints
            model = LlavaNextForConditionalGeneration(LlavaNextConfig(**common, image_grid_pinpoints=pinpoints))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"{spec.architecture} cannot be built from the recipe: {error}") from error
    settings = model.generation_config
    settings.update(**special, do_sample=False, max_new_tokens=8)
    return model


def take_weights(model: nn.Module, other: nn.Module) -> list[str]:
    """Copy the weights of ``other`` into ``model``; return the names of those that found no place.

    Where patches became larger, their kernels are stretched and the middle of the grid of positions is taken: the tower
    sees the picture as ``other`` saw one that is as much smaller.
    """
    mine, left = model.state_dict(), []
    for name, value in other.state_dict().items():
        if name not in mine:
            left.append(name)
            continue
        if value.shape != mine[name].shape and name.endswith("patch_embedding.weight"):
            stretch = mine[name].shape[-1] // value.shape[-1]
            value = value.repeat_interleave(stretch, -1).repeat_interleave(stretch, -2) / stretch**2
        if value.shape != mine[name].shape and name.endswith("position_embedding.weight"):
            value = _middle(value, len(mine[name]))
        if value.shape == mine[name].shape:
            mine[name].copy_(value)
        else:
            left.append(name)
    return left


def _middle(positions: Tensor, count: int) -> Tensor:
    """Return the class token's position and those of the middle of the grid, ``count`` in all."""
    old, new = math.isqrt(len(positions) - 1), math.isqrt(count - 1)
    first = (old - new) // 2
    if first < 0:
        return positions
    grid = positions[1:].view(old, old, -1)[first : first + new, first : first + new]
    return torch.cat([positions[:1], grid.flatten(0, 1)])


def save_multimodal(model: Any, processor: Any, folder: Path) -> None:
    """Write model, processor and tokenizer; weights in half precision.

    Raises:
        DataError: a weight that half precision cannot hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model.half()
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise DataError(f"{name} has values that half precision cannot hold. Was the training stable?")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone; a model is there to be shared
