"""One golden vector, and the registry of what can check it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

CONSTRUCTORS: dict[str, type[nn.Module]] = {
    f"{cls.__module__}.{cls.__qualname__}": cls for cls in (VisionTransformer, VisionTransformerDistilled)
}
# the folders of this repository
OWN = tuple(Path(__file__).parent / name for name in ("vit", "mllm", "tokenizers"))


@dataclass(eq=False)
class Case:
    """One file of the format ``golden-v1``; tensors are read on first use.

    Attributes:
        path: the file.
        folders: where weights are looked for, besides the folder of the file.
        read: names of the tensors that a check looked at.
    """

    path: Path
    folders: tuple[Path, ...] = ()
    read: set[str] = field(default_factory=set)

    @cached_property
    def meta(self) -> dict[str, str]:
        """The header."""
        with safe_open(self.path, "pt") as file:
            return file.metadata() or {}

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        with safe_open(self.path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping

    @property
    def stem(self) -> str:
        """Name of the file, for people only: checks must not look at it."""
        return self.path.stem

    @property
    def method(self) -> str:
        """Which method the numbers are for; those of tokenizers name none."""
        return self.meta.get("method", "")

    @cached_property
    def hyper(self) -> dict[str, Any]:
        """The hyper-parameters; the three families of vectors spell their key in three ways."""
        keys = ("hyper_parameters", "hyperparameters", "config")
        return json.loads(next((self.meta[key] for key in keys if self.meta.get(key)), "{}"))

    @cached_property
    def meaning(self) -> dict[str, str]:
        """What the tensors of a tokenizer's vector are, by name or by prefix ending in ``*``."""
        return json.loads(self.meta.get("meaning", "{}"))

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._tensors)

    @property
    def prefix(self) -> int:
        """Prefix tokens of an operator case."""
        return int(bool(self.hyper.get("class_token"))) + int(bool(self.hyper.get("distill_token")))

    def has(self, *names: str) -> bool:
        """Whether there are tensors of all these names."""
        return self.names.issuperset(names)

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self._tensors[name]

    def get(self, name: str) -> Tensor | None:
        """The tensor, or ``None``."""
        return self[name] if name in self.names else None

    def replace(self, name: str, tensor: Tensor) -> None:
        """Put another tensor in the place of one, to see whether checks notice."""
        self._tensors[name] = tensor

    def sizes(self, name: str) -> Tensor | None:
        """Token sizes [B, N] from a tensor [B, N, 1], or ``None``."""
        sizes = self.get(name)
        return None if sizes is None else sizes.squeeze(-1)

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name starts with ``prefix``, without it."""
        return {name.removeprefix(prefix): self[name] for name in sorted(self.names) if name.startswith(prefix)}

    def state_dict(self) -> dict[str, Tensor]:
        """The weights inside the case: tensors called ``sd.*``."""
        return {name.removeprefix("sd."): self[name] for name in self.names if name.startswith("sd.")}

    def unread(self) -> list[str]:
        """Tensors that no check looked at."""
        return sorted(self.names - self.read)

    @property
    def constructor_kwargs(self) -> dict[str, Any]:
        """Arguments of the model's constructor."""
        return json.loads(self.meta["constructor_kwargs"])

    def model(self) -> nn.Module:
        """The timm model of a model case, with its weights, in evaluation mode."""
        places = [folder / self.meta["weights"] for folder in (self.path.parent, *self.folders)]
        path = next((place for place in places if place.is_file()), None)
        assert path is not None, f"{self.stem} needs {self.meta['weights']}, which is in none of its folders"
        with safe_open(path, "pt") as file:
            constructor = (file.metadata() or {}).get("constructor", next(iter(CONSTRUCTORS)))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        model = CONSTRUCTORS[constructor](**self.constructor_kwargs)
        model.load_state_dict(weights)
        return model.eval()


Matches = Callable[[Case], bool]
Check = Callable[[Case], None]
_checks: list[tuple[str, Matches, Check]] = []


def checks(method: str, matches: Matches) -> Callable[[Check], Check]:
    """Decorator: the function checks cases of ``method`` (``*`` stands for anything) that ``matches`` is true for."""

    def decorate(check: Check) -> Check:
        _checks.append((method, matches, check))
        return check

    return decorate


def checks_of(case: Case) -> list[Check]:
    """Everything that can check this case."""
    return [check for method, matches, check in _checks if fnmatchcase(case.method, method) and matches(case)]


def run_checks(case: Case) -> bool:
    """Check everything there is to check; false if there is nothing."""
    found = checks_of(case)
    for check in found:
        check(case)
    return bool(found)


def collect(folders: Iterable[Path]) -> list[Case]:
    """The cases of some folders or files; weights are no cases."""
    folders = tuple(folders)
    homes = tuple(folder if folder.is_dir() else folder.parent for folder in folders)
    cases = []
    for folder in folders:
        paths = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
        cases += [Case(path, homes) for path in paths if not _is_weights(path)]
    return cases


def _is_weights(path: Path) -> bool:
    return path.stem.startswith("weights__") or path.stem.endswith("__weights")


def is_model_case(case: Case) -> bool:
    """A whole model with an image and its logits, in evaluation mode."""
    return case.has("image", "logits", "tokens_per_layer") and "weights" in case.meta
