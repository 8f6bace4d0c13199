"""Tokenizers that ship with tokred, and how one is found by name, folder or hub id."""

import difflib
import os
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tokred.errors import ConfigError, DataError
from tokred.folders import shipped_folder
from tokred.model_folder import (
    CONFIG,
    WEIGHTS,
    architecture_of,
    check_spec,
    peek,
    read_json,
    read_weights,
    shipped_models,
    write_model,
)
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
    return shipped_models(lambda raw: architecture_of(raw) in tokenizers())


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
    if path.is_dir() and (path / CONFIG).is_file() and not is_published(read_json(path / CONFIG)):
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
    config = peek(Path(name).expanduser() / CONFIG)
    return name in list_tokenizers() or is_published(config) or architecture_of(config) in tokenizers()


def load_prior(name_or_folder: str | os.PathLike[str]) -> Prior:
    """Return a prior over the codes of a tokenizer, in eval mode: one that ships, or one in a folder.

    Raises:
        DataError: no such folder, or files that cannot be read.
        ConfigError: a configuration that is none of a prior.
    """
    shipped = shipped_folder("models") / os.fspath(name_or_folder)
    folder = shipped if (shipped / CONFIG).is_file() else Path(name_or_folder).expanduser()
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
    known: dict[str, type[BaseModel]] = {name: cls.spec for name, cls in tokenizers().items()} | {"prior": PriorConfig}
    raw = read_json(path)
    architecture = architecture_of(raw)
    if architecture not in known:
        raise ConfigError(f"{path}: the architecture {architecture!r} is not known. Known: {', '.join(known)}.")
    return check_spec(raw, path, known[architecture])


def save_tokenizer(model: Tokenizer | Prior, folder: str | os.PathLike[str]) -> Path:
    """Write ``config.json`` and ``model.safetensors`` in half precision; return the path of the weights.

    Raises:
        DataError: a weight that half precision cannot hold.
    """
    return write_model(model, model.config, folder)


def _load_tokenizer(folder: Path) -> Tokenizer:
    model = _load_folder(folder)
    if isinstance(model, Prior):
        raise ConfigError(f"{folder} holds a prior, no tokenizer. Try load_prior.")
    return model


def _load_folder(folder: Path) -> Tokenizer | Prior:
    config = read_tokenizer_config(folder / CONFIG)
    model = Prior(config) if config.architecture == "prior" else tokenizers()[config.architecture](config)
    read_weights(model, folder / WEIGHTS)
    return model.eval()


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:  # the hub client's errors share no base class across its versions
        raise DataError(
            f"{name} cannot be fetched from the hub ({type(error).__name__}: {str(error)[:200]})."
        ) from error
