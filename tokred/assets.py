"""The models that ship with tokred, and how a model is found by name or folder."""

import difflib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from tokred.errors import ConfigError, DataError
from tokred.folders import shipped_folder
from tokred.model_folder import CONFIG, WEIGHTS, architecture_of, read_spec, read_weights, shipped_models, write_model

Architecture = Literal["vision_transformer", "eva"]

# What an architecture takes from a file. Everything else keeps timm's default.
_COMMON_ARGS = {
    "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "qkv_bias", "qk_norm", "init_values", "class_token", "no_embed_class", "patch_drop_rate", "drop_path_rate",
}  # fmt: skip
_VIT_ARGS = _COMMON_ARGS | {"reg_tokens", "pos_embed", "pre_norm", "final_norm", "fc_norm", "dynamic_img_size"}
_EVA_ARGS = _COMMON_ARGS | {
    "num_reg_tokens", "use_abs_pos_emb", "use_rot_pos_emb", "rope_type", "ref_feat_shape", "swiglu_mlp", "qkv_fused",
    "use_fc_norm", "use_post_transformer_norm", "dynamic_img_size",
}  # fmt: skip


class ConvStem(BaseModel):
    """Overlapping 3 x 3 convolutions instead of one patch projection; their strides multiply to the patch size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: tuple[int, ...]
    strides: tuple[int, ...]


class ModelConfig(BaseModel):
    """What ``config.json`` beside a ``model.safetensors`` says: the architecture and how pictures are fed to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture
    args: dict[str, Any]
    conv_stem: ConvStem | None = None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    data: str | None = Field(default=None, description="data set it was trained on, a name load_dataset knows")


def build_model(config: ModelConfig) -> nn.Module:
    """Return the untrained model that ``config`` describes.

    Raises:
        ConfigError: an argument that the architecture does not take from files.
    """
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem as TimmConvStem

    known: dict[str, tuple[Callable[..., nn.Module], set[str]]] = {
        "vision_transformer": (VisionTransformer, _VIT_ARGS),
        "eva": (Eva, _EVA_ARGS),
    }
    build, allowed = known[config.architecture]
    for key in config.args:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" It takes: {', '.join(sorted(allowed))}."
            raise ConfigError(f"{config.architecture} takes no argument {key!r} from a file.{hint}")
    try:
        if config.conv_stem is None:
            return build(**config.args)
        args = dict(config.args)
        stem = config.conv_stem
        embed = partial(
            HybridEmbed,
            backbone=TimmConvStem(
                in_chans=args["in_chans"],
                depth=len(stem.channels),
                channels=stem.channels,
                kernel_size=3,
                stride=stem.strides,
            ),
            proj=False,
        )
        if build is VisionTransformer:
            return build(**args | {"embed_layer": embed, "patch_size": 1})  # the stem has done the patching
        model = build(**args)
        model.patch_embed = embed(img_size=args["img_size"], in_chans=args["in_chans"], embed_dim=args["embed_dim"])
        return model
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as error:
        raise ConfigError(f"{config.architecture} cannot be built from {config.args}: {error}") from error


def list_models() -> tuple[str, ...]:
    """Return the names of the image encoders that ship with tokred.

    Multimodal models are listed by :func:`tokred.multimodal_assets.list_multimodal_models`, tokenizers by
    :func:`tokred.tokenizer_assets.list_tokenizers`, CLIP models by :func:`tokred.clip_assets.list_clip_models`.

    >>> "vit-fmnist" in list_models()
    True
    """
    return shipped_models(lambda raw: architecture_of(raw) in get_args(Architecture))


def load_model(name_or_folder: str | os.PathLike[str], *, pretrained: bool = True, **arguments: Any) -> nn.Module:
    """Return a model in eval mode, float32, on the CPU: one that ships, one in a folder, or one of timm's.

    Its ``pretrained_cfg`` says ``input_size``, ``mean``, ``std``, ``num_classes`` and, for models in folders,
    ``classes`` and ``data``; :func:`tokred.data.transform_for` reads it.

    Args:
        name_or_folder: a name of :func:`list_models`, a folder with ``config.json`` and ``model.safetensors``, or
            the name of a timm model.
        pretrained: for timm models, fetch the weights from the hub; ``False`` leaves them as initialised.
        arguments: for timm models, what ``timm.create_model`` takes, such as ``num_classes``.

    Raises:
        DataError: no such model, unreadable weights, or the hub cannot be reached.
        ConfigError: a ``config.json`` with an unknown key or a wrong value, or arguments that the model does not take.

    >>> load_model("vit-fmnist").pretrained_cfg["input_size"]
    (1, 28, 28)
    """
    folder = model_folder(name_or_folder)
    if not folder.is_dir():
        return _load_timm(os.fspath(name_or_folder), pretrained, arguments)
    if arguments:
        raise ConfigError(f"{name_or_folder} is what its config.json says; it takes no {', '.join(arguments)}.")
    return _load_folder(folder)


def model_folder(name_or_folder: str | os.PathLike[str]) -> Path:
    """Return the folder of a model that ships, or the folder itself."""
    name = os.fspath(name_or_folder)
    return shipped_folder("models") / name if name in list_models() else Path(name).expanduser()


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Read and check a ``config.json``.

    Raises:
        DataError: no such file.
        ConfigError: no JSON, an unknown key or a wrong value; the message names it.
    """
    return read_spec(path, ModelConfig, ConvStem)


def save_model(model: nn.Module, config: ModelConfig, folder: str | os.PathLike[str]) -> Path:
    """Write ``config.json`` and ``model.safetensors`` in half precision; return the path of the weights.

    Raises:
        DataError: a weight that half precision cannot hold.
    """
    return write_model(model, config, folder)


def _load_folder(folder: Path) -> nn.Module:
    config = read_config(folder / CONFIG)
    model = build_model(config)
    read_weights(model, folder / WEIGHTS)
    height, width = _pair(config.args.get("img_size", 224))
    cfg = {
        "input_size": (int(config.args.get("in_chans", 3)), height, width),
        "num_classes": int(config.args.get("num_classes", 1000)),
        "mean": config.mean,
        "std": config.std,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "classes": config.classes,
        "data": config.data,
        "architecture": config.architecture,
    }
    model.__dict__["pretrained_cfg"] = cfg  # where timm's models have it
    return model.eval()


def _load_timm(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    import timm

    shipped = list_models()
    if not timm.is_model(name):
        known = [*shipped, *timm.list_models(), *timm.list_pretrained()]
        near = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise DataError(
            f"{name!r} is no model that ships with tokred ({', '.join(shipped)}), no folder, and no timm model.{hint}"
        )
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments).eval()
    except (TypeError, FileNotFoundError) as error:
        raise ConfigError(f"{name} cannot be built with {arguments}: {error}") from error
    except Exception as error:  # the hub client's errors share no base class across its versions
        if not pretrained:
            raise
        raise DataError(
            f"The weights of {name!r} cannot be fetched from the hub ({type(error).__name__}: {str(error)[:200]}). "
            f"Offline, use a model that ships with tokred: {', '.join(shipped)}; or a folder with config.json and "
            "model.safetensors."
        ) from error


def _pair(size: Any) -> tuple[int, int]:
    return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) else (int(size), int(size))
