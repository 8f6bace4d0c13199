"""CLIP models in files: a pair of open_clip towers with a vocabulary of whole words. One ships with tokred."""

import difflib
import os
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from tokred.data.words import WordTokenizer
from tokred.errors import ConfigError, DataError
from tokred.folders import shipped_folder
from tokred.model_folder import (
    CONFIG,
    WEIGHTS,
    architecture_of,
    peek,
    read_spec,
    read_weights,
    shipped_models,
    write_model,
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageTower(_Part):
    """What open_clip's ``CLIPVisionCfg`` takes from a file; everything else keeps its default."""

    image_size: int = Field(gt=0)
    patch_size: int = Field(gt=0)
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    head_width: int = Field(default=64, gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)


class TextTower(_Part):
    """What open_clip's ``CLIPTextCfg`` takes from a file; the vocabulary follows from the words."""

    context_length: int = Field(gt=2)
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)


class ClipConfig(_Part):
    """What ``config.json`` of a CLIP model says: towers, words, and how pictures are fed to it."""

    architecture: Literal["clip"]
    embed_dim: int = Field(gt=0)
    vision: ImageTower
    text: TextTower
    words: tuple[str, ...] = Field(min_length=1)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    templates: tuple[str, ...] = Field(default=("{}",), description="texts around the name of a class")
    zero_shot: str | None = Field(
        default=None, description="labelled pictures whose classes its words can name, a name load_dataset knows"
    )
    data: str | None = Field(default=None, description="captions it was trained on, a name load_captions knows")


def build_clip(config: ClipConfig) -> Any:
    """Return the untrained ``open_clip.CLIP`` that ``config`` describes.

    Raises:
        ConfigError: numbers that open_clip cannot build towers from.
    """
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    tokenizer = WordTokenizer(config.words, config.text.context_length)
    text = CLIPTextCfg(vocab_size=tokenizer.vocab_size, **config.text.model_dump())
    try:
        return CLIP(config.embed_dim, CLIPVisionCfg(**config.vision.model_dump()), text)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(
            f"open_clip cannot build towers from vision {config.vision}, text {config.text}: {error}"
        ) from error


def list_clip_models() -> tuple[str, ...]:
    """Return the names of the CLIP models that ship with tokred.

    >>> list_clip_models()
    ('clip-shapes',)
    """
    return shipped_models(_is_ours)


def load_clip(name_or_folder: str | os.PathLike[str], *, pretrained: bool = True) -> tuple[Any, Any]:
    """Return (model, tokenizer): an ``open_clip.CLIP`` in eval mode, float32, on the CPU, and what reads its texts.

    ``model.pretrained_cfg`` says ``input_size``, ``mean``, ``std``, ``templates`` and ``data``;
    :func:`tokred.data.transform_for` reads it.

    Args:
        name_or_folder: a name of :func:`list_clip_models`, a folder with ``config.json`` and ``model.safetensors``, or
            an architecture of open_clip with the tag of its weights, such as "ViT-B-32/laion2b_s34b_b79k".
        pretrained: for models of open_clip, fetch the weights; ``False`` makes a model of the same shapes without any,
            on the device "meta".

    Raises:
        DataError: no such model, or weights that cannot be read or do not fit.
        ConfigError: a ``config.json`` with an unknown key or a wrong value.

    >>> model, tokenizer = load_clip("clip-shapes")
    >>> model.encode_text(tokenizer("a red circle at the top")).shape
    torch.Size([1, 96])
    """
    name = os.fspath(name_or_folder)
    if _is_open_clip(name):
        return _load_open_clip(name, pretrained)
    shipped = list_clip_models()
    folder = shipped_folder("models") / name if name in shipped else Path(name).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{name!r} is no CLIP model that ships with tokred ({', '.join(shipped) or 'none'}), no folder, and no "
            "architecture/tag of open_clip, such as ViT-B-32/openai."
        )
    config = read_clip_config(folder / CONFIG)
    model = build_clip(config)
    read_weights(model, folder / WEIGHTS)
    model.__dict__["pretrained_cfg"] = {
        "input_size": (3, config.vision.image_size, config.vision.image_size),
        "mean": config.mean,
        "std": config.std,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "templates": config.templates,
        "zero_shot": config.zero_shot,
        "data": config.data,
        "architecture": config.architecture,
    }
    return model.eval(), WordTokenizer(config.words, config.text.context_length)


def save_clip(model: nn.Module, config: ClipConfig, folder: str | os.PathLike[str]) -> Path:
    """Write ``config.json`` and ``model.safetensors`` in half precision; return the path of the weights.

    Raises:
        DataError: a weight that half precision cannot hold.
    """
    return write_model(model, config, folder)


def read_clip_config(path: str | os.PathLike[str]) -> ClipConfig:
    """Read and check the ``config.json`` of a CLIP model.

    Raises:
        DataError: no such file.
        ConfigError: no JSON, an unknown key or a wrong value; the message names it.
    """
    return read_spec(path, ClipConfig, ImageTower, TextTower)


def is_clip(name: str) -> bool:
    """Say whether :func:`load_clip` is meant by a name: a shipped one, a folder of a CLIP, or one of open_clip."""
    return name in list_clip_models() or _is_ours(peek(Path(name).expanduser() / CONFIG)) or _is_open_clip(name)


def require_clip(name: str) -> None:
    """Look whether there are such weights, without loading them.

    Raises:
        DataError: open_clip has none of that tag; the message gives near ones.
    """
    if _is_open_clip(name):
        from open_clip import list_pretrained_tags_by_model

        architecture, _, tag = name.partition("/")
        known = list_pretrained_tags_by_model(architecture)
        if tag not in known:
            near = difflib.get_close_matches(tag, known, n=3) or known
            raise DataError(f"{architecture} has no weights {tag!r} in open_clip. Try {', '.join(near) or 'another'}.")


def _is_ours(raw: Any) -> bool:
    return architecture_of(raw) == "clip"


def _is_open_clip(name: str) -> bool:
    architecture, slash, tag = name.partition("/")
    if not slash or not tag or "/" in tag or Path(name).expanduser().exists():
        return False
    from open_clip import list_models

    return architecture in list_models()


def _load_open_clip(name: str, pretrained: bool) -> tuple[Any, Any]:
    import open_clip

    require_clip(name)
    architecture, _, tag = name.partition("/")
    try:
        if pretrained:
            model = open_clip.create_model(architecture, pretrained=tag)
        else:
            with torch.device("meta"):
                model = open_clip.create_model(architecture, pretrained=None, device="meta")
        tokenizer = open_clip.get_tokenizer(architecture) if pretrained else None
    except Exception as error:  # the hub client's errors share no base class across its versions
        raise DataError(
            f"{name} cannot be fetched ({type(error).__name__}: {str(error)[:200]}). Offline, use a model that ships "
            f"with tokred: {', '.join(list_clip_models())}; or a folder with config.json and model.safetensors."
        ) from error
    visual: Any = model.visual
    how, size = visual.preprocess_cfg, visual.image_size
    model.__dict__["pretrained_cfg"] = {
        "input_size": (3, *size),
        "mean": how["mean"],
        "std": how["std"],
        "crop_pct": 1.0,
        "crop_mode": "squash" if how["resize_mode"] == "squash" else "center",
        "interpolation": how["interpolation"],
        "templates": tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES),
        "zero_shot": None,
        "data": None,
        "architecture": "clip",
    }
    return model.eval(), tokenizer
