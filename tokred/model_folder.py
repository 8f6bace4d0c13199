"""What a model folder of ours is: ``config.json`` beside a ``model.safetensors`` in half precision."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tokred.errors import ConfigError, DataError
from tokred.folders import shipped_folder

Spec = TypeVar("Spec", bound=BaseModel)
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def shipped_models(is_one: Callable[[Any], bool]) -> tuple[str, ...]:
    """The names of the models that ship and whose ``config.json`` is of the kind that ``is_one`` knows."""
    found = shipped_folder("models").glob(f"*/{CONFIG}")
    return tuple(sorted(path.parent.name for path in found if is_one(peek(path))))


def peek(path: Path) -> Any:
    """What a ``config.json`` holds, unchecked; ``None`` if there is none that can be read."""
    try:
        return read_json(path)
    except (ConfigError, DataError):
        return None


def architecture_of(raw: Any) -> str | None:
    """The architecture that the contents of a ``config.json`` name; ``None`` if they name none."""
    name = raw.get("architecture") if isinstance(raw, dict) else None
    return name if isinstance(name, str) else None


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a ``config.json``.

    Raises:
        DataError: no such file.
        ConfigError: no JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist. A model folder holds {CONFIG} and {WEIGHTS}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}).") from error


def read_spec(path: str | os.PathLike[str], spec: type[Spec], *parts: type[BaseModel]) -> Spec:
    """Read and check a ``config.json``.

    Args:
        path: the file.
        spec: what it must be.
        parts: the specifications inside of it, for the names of their keys.

    Raises:
        DataError: no such file.
        ConfigError: no JSON, an unknown key or a wrong value; the message names it.
    """
    return check_spec(read_json(path), path, spec, *parts)


def check_spec(raw: Any, path: str | os.PathLike[str], spec: type[Spec], *parts: type[BaseModel]) -> Spec:
    """:func:`read_spec` of what was read already.

    Raises:
        ConfigError: an unknown key or a wrong value; the message names it.
    """
    try:
        return spec.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{os.fspath(path)}: {_say_what_is_wrong(error, spec, *parts)}") from error


def _say_what_is_wrong(error: ValidationError, *specs: type[BaseModel]) -> str:
    """Return pydantic's complaints in words, with the nearest known key for each unknown one."""
    known = {name for spec in specs for name in spec.model_fields}
    lines = []
    for found in error.errors():
        place = ".".join(str(part) for part in found["loc"]) or "the file"
        if found["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(found["loc"][-1]), known, n=1)
            lines.append(f"unknown key {place!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        else:
            lines.append(f"{place}: {found['msg']} (found {str(found['input'])[:80]!r}).")
    return " ".join(lines)


def read_weights(model: nn.Module, path: Path) -> None:
    """Fill a model, in its own precision, from a file.

    Raises:
        DataError: no such file, it cannot be read, or its tensors do not fit; the message lists all that do not.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist. A model folder holds {CONFIG} and {WEIGHTS}.")
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error}).") from error
    own = model.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        raise DataError(
            f"{path} does not fit {CONFIG}. Missing: {', '.join(missing) or 'none'}. "
            f"Not expected: {', '.join(extra) or 'none'}."
        )
    require_shapes({name: (value, own[name]) for name, value in weights.items()}, path)
    model.load_state_dict(weights)


def require_shapes(pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], path: Path) -> None:
    """Refuse tensors of a file whose shapes are not those of a model.

    Args:
        pairs: for every name the tensor of the file and that of the model.
        path: the file.

    Raises:
        DataError: the message lists all of them.
    """
    wrong = [
        f"{name} is {tuple(found.shape)} instead of {tuple(wanted.shape)}"
        for name, (found, wanted) in pairs.items()
        if found.shape != wanted.shape
    ]
    if wrong:
        raise DataError(f"{path}: {'; '.join(wrong)}.")


def write_model(model: nn.Module, config: Any, folder: str | os.PathLike[str]) -> Path:
    """Write the configuration and, in half precision, the weights; return the path of the weights.

    Args:
        model: what was trained.
        config: its specification, which names an ``architecture``.
        folder: where; made if it is not there.

    Raises:
        DataError: a weight that half precision cannot hold.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise DataError(f"{name} has values that half precision cannot hold. Was the training stable?")
    path = folder / WEIGHTS
    save_file(weights, path, metadata={"format": "pt", "architecture": config.architecture})
    path.chmod(0o644)  # safetensors writes for the owner alone; a model is there to be shared
    text = json.dumps(config.model_dump(mode="json", exclude_none=True), indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    return path
