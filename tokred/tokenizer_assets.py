"""Tokenizers that ship with tokred, and how one is found by name, folder or hub id."""

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tokred.assets import say_what_is_wrong
from tokred.errors import ConfigError, DataError
from tokred.folders import shipped_folder
from tokred.tokenizers.base import Tokenizer
from tokred.tokenizers.flextok.published import is_published, load_published
from tokred.tokenizers.prior import Prior, PriorConfig
from tokred.tokenizers.registry import tokenizers

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TERMS = (
    "The FlexTok models of Apple and EPFL are under the Apple Machine Learning Research Model licence: research "
    "purposes only, not transferable; what is made from them inherits it. Read it on the model's page. tokred ships "
    "none of them. To download {name}, say load_tokenizer({name!r}, accept_terms=True)."
)


def list_tokenizers() -> tuple[str, ...]:
    """Return the names of the tokenizers that ship with tokred."""
    found = shipped_folder("models").glob("*/config.json")
    return tuple(sorted(path.parent.name for path in found if _architecture(_config_or_none(path)) in tokenizers()))


def load_tokenizer(
    name_or_folder: str | os.PathLike[str],
    *,
    scaling_factor: float | None = None,
    sample_posterior: bool | None = None,
    accept_terms: bool = False,
) -> Tokenizer:
    """Return a tokenizer in eval mode, float32, on the CPU.

    Args:
        name_or_folder: a name of :func:`list_tokenizers`; a folder with ``config.json`` and ``model.safetensors``, ours
            or of a published FlexTok; a ``.safetensors`` file with its configuration in the header; or a hub id.
        scaling_factor: of the autoencoder's latents, for published files that do not say it.
        sample_posterior: for published files, instead of what they say.
        accept_terms: download from the hub; without it, only what the licence says is shown.

    Raises:
        DataError: nothing of that name, files that cannot be read, or tensors that do not fit, by name.
        ConfigError: a configuration with something unknown; nothing that it names is imported.
    """
    name = os.fspath(name_or_folder)
    shipped = list_tokenizers()
    if name in shipped:
        return _load_tokenizer(shipped_folder("models") / name)
    path = Path(name).expanduser()
    if path.is_dir() and (path / "config.json").is_file() and not is_published(_read_json(path / "config.json")):
        return _load_tokenizer(path)
    if path.exists():
        return load_published(path, scaling_factor=scaling_factor, sample_posterior=sample_posterior)
    if _HUB_ID.fullmatch(name):
        if not accept_terms:
            raise DataError(TERMS.format(name=name))
        return load_published(_download(name), scaling_factor=scaling_factor, sample_posterior=sample_posterior)
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(shipped) or 'none'}."
    raise DataError(f"{name!r} is no tokenizer that ships with tokred, no folder, and no hub id. {hint}")


def is_tokenizer(name: str) -> bool:
    """Say whether :func:`load_tokenizer` is meant by a name: a shipped one, or a folder of a tokenizer."""
    config = _config_or_none(Path(name).expanduser() / "config.json")
    return name in list_tokenizers() or is_published(config) or _architecture(config) in tokenizers()


def load_prior(name_or_folder: str | os.PathLike[str]) -> Prior:
    """Return a prior over the codes of a tokenizer, in eval mode: one that ships, or one in a folder.

    Raises:
        DataError: no such folder, or files that cannot be read.
        ConfigError: a configuration that is none of a prior.
    """
    shipped = shipped_folder("models") / os.fspath(name_or_folder)
    folder = shipped if (shipped / "config.json").is_file() else Path(name_or_folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{os.fspath(name_or_folder)!r} is no prior that ships with tokred, and no folder.")
    model = _load_folder(folder)
    if not isinstance(model, Prior):
        raise ConfigError(f"{folder} holds a {model.config.architecture}, no prior. Try load_tokenizer.")
    return model


def read_tokenizer_config(path: str | os.PathLike[str]) -> Any:
    """Read and check the ``config.json`` of one of our tokenizers or priors.

    Raises:
        DataError: no such file.
        ConfigError: no JSON, an unknown architecture or key, or a wrong value; the message names it.
    """
    path = Path(path)
    raw = _read_json(path)
    known: dict[str, type[BaseModel]] = {name: cls.spec for name, cls in tokenizers().items()} | {"prior": PriorConfig}
    architecture = _architecture(raw)
    if architecture not in known:
        raise ConfigError(f"{path}: the architecture {architecture!r} is not known. Known: {', '.join(known)}.")
    spec = known[architecture]
    try:
        return spec.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {say_what_is_wrong(error, spec)}") from error


def save_tokenizer(model: Tokenizer | Prior, folder: str | os.PathLike[str]) -> Path:
    """Write ``config.json`` and ``model.safetensors`` in half precision; return the path of the weights.

    Raises:
        DataError: a weight that half precision cannot hold.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous().half() for name, value in model.state_dict().items()}
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise DataError(f"{name} has values that half precision cannot hold. Was the training stable?")
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt", "architecture": model.config.architecture})
    path.chmod(0o644)  # safetensors writes for the owner alone; a model is there to be shared
    text = json.dumps(model.config.model_dump(mode="json", exclude_none=True), indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    return path


def _load_tokenizer(folder: Path) -> Tokenizer:
    model = _load_folder(folder)
    if isinstance(model, Prior):
        raise ConfigError(f"{folder} holds a prior, no tokenizer. Try load_prior.")
    return model


def _load_folder(folder: Path) -> Tokenizer | Prior:
    config = read_tokenizer_config(folder / "config.json")
    model = Prior(config) if config.architecture == "prior" else tokenizers()[config.architecture](config)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise DataError(f"{path} does not exist. A model folder holds config.json and model.safetensors.")
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error}).") from error
    own = model.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        raise DataError(
            f"{path} does not fit config.json. Missing: {', '.join(missing) or 'none'}. "
            f"Not expected: {', '.join(extra) or 'none'}."
        )
    wrong = [f"{name} is {tuple(value.shape)} instead of {tuple(own[name].shape)}"
             for name, value in weights.items() if value.shape != own[name].shape]  # fmt: skip
    if wrong:
        raise DataError(f"{path}: {'; '.join(wrong)}.")
    model.load_state_dict(weights)  # copies half precision into the model's float32
    return model.eval()


def _architecture(config: Any) -> Any:
    return config.get("architecture") if isinstance(config, dict) else None


def _config_or_none(path: Path) -> Any:
    try:
        return _read_json(path)
    except (ConfigError, DataError):
        return None


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path} does not exist. A model folder holds config.json and model.safetensors.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}).") from error


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:  # the hub client's errors share no base class across its versions
        raise DataError(
            f"{name} cannot be fetched from the hub ({type(error).__name__}: {str(error)[:200]})."
        ) from error
