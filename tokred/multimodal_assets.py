"""The multimodal models that ship with tokred, and how a model of transformers is found by name, folder or hub id."""

import os
from pathlib import Path
from typing import Any

from tokred.errors import DataError
from tokred.folders import shipped_folder
from tokred.model_folder import CONFIG, peek, shipped_models


def list_multimodal_models() -> tuple[str, ...]:
    """Return the names of the multimodal models that ship with tokred.

    >>> "llava-shapes" in list_multimodal_models()
    True
    """
    return shipped_models(_is_of_transformers)


def load_multimodal(name_or_folder_or_hub_id: str | os.PathLike[str]) -> tuple[Any, Any]:
    """Return (model, processor): the model in eval mode, float32, on the CPU.

    Only safetensors are read, and no code that comes with a model is run.

    Args:
        name_or_folder_or_hub_id: a name of :func:`list_multimodal_models`, a folder that ``save_pretrained`` wrote, or
            an id of the hub.

    Raises:
        DataError: no such model, files that are missing or cannot be read, or the hub cannot be reached.

    >>> model, processor = load_multimodal("llava-shapes")
    >>> model.config.model_type
    'llava'
    """
    name = os.fspath(name_or_folder_or_hub_id)
    shipped = list_multimodal_models()
    folder = shipped_folder("models") / name if name in shipped else Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return _load(os.fspath(folder), local=True, hint="Was it written by save_pretrained, weights as safetensors?")
    hint = f"It is no folder and none of the models that ship with tokred: {', '.join(shipped) or 'none'}."
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DataError(f"{name!r} cannot be loaded. {hint} An id of the hub looks like organisation/model.")
    return _load(name, local=False, hint=hint)


def is_multimodal(name: str) -> bool:
    """Say whether :func:`load_multimodal` is meant by a name: a shipped one, a folder of transformers, or a hub id."""
    folder = Path(name).expanduser()
    if name in list_multimodal_models():
        return True
    if folder.is_dir():
        return _is_of_transformers(peek(folder / CONFIG))
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _is_of_transformers(raw: Any) -> bool:
    """Whether a ``config.json`` is one of transformers; tokred's own has no ``model_type``."""
    return isinstance(raw, dict) and "model_type" in raw


def _check_folder(folder: Path) -> None:
    config = folder / CONFIG
    if not config.is_file():
        raise DataError(f"{config} does not exist. A multimodal model folder holds what save_pretrained writes.")
    if not _is_of_transformers(peek(config)):
        raise DataError(f"{config} has no 'model_type'. For tokred's own image encoders use tokred.assets.load_model.")
    if not any(folder.glob("*.safetensors")):
        raise DataError(f"{folder} holds no safetensors file. Other formats of weights are not read.")


def _load(place: str, *, local: bool, hint: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(place, trust_remote_code=False, local_files_only=local)
        model = AutoModelForImageTextToText.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=local
        )
    except Exception as error:  # the hub client's and the loaders' errors share no base class across versions
        raise DataError(
            f"{place}: cannot be loaded as a multimodal model ({type(error).__name__}: {str(error)[:200]}). {hint}"
        ) from error
    return model.eval(), processor
