"""One point of a sweep, and the key that its result is stored under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import torch

from tokred.methods import Method, create_method

TowerName = Literal["vision", "text"]
UNPATCHED = "unpatched"
TRAIN_IMAGES = 10_000


@dataclass(frozen=True)
class Settings:
    """What is the same for all points of a sweep; see :class:`tokred.sweep.SweepSpec`."""

    split: str
    images: int | None
    batch_size: int
    rounds: int
    threads: int
    device: str
    dtype: str
    seed: int
    worst: int = 0
    metrics: tuple[str, ...] = ()
    throughput: tuple[int, ...] = ()
    train_images: int = TRAIN_IMAGES

    @property
    def config(self) -> dict[str, Any]:
        """As plain data; what is at rest is left out, so that the keys of earlier results hold."""
        rest = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        return {name: value for name, value in asdict(self).items() if name not in rest or value != rest[name]}

    @classmethod
    def of(cls, spec: Any) -> Settings:
        """Those that a specification has by name; as many threads as torch uses, if it names none."""
        named = {f.name: getattr(spec, f.name) for f in fields(cls) if hasattr(spec, f.name)}
        return cls(**{**named, "threads": named["threads"] or torch.get_num_threads()})


@dataclass(frozen=True)
class Point:
    """One model, one data set, one method with its knobs, in one tower; ``method=None`` is the unpatched model."""

    model: str
    data: str
    method: str | None
    knobs: Mapping[str, Any]
    settings: Settings = field(repr=False)
    paper_top1: float | None = field(default=None, compare=False)  # what a paper says, which decides about nothing
    tower: TowerName = "vision"

    @property
    def config(self) -> dict[str, Any]:
        """Everything that decides about the result, as plain data."""
        return {
            "model": self.model,
            "data": self.data,
            "method": self.method or UNPATCHED,
            "knobs": dict(self.knobs),
            **self._elsewhere,
            **self.settings.config,
        }

    @cached_property
    def config_json(self) -> str:
        """The configuration in one canonical line."""
        return json.dumps(self.config, sort_keys=True, default=str)

    @cached_property
    def key(self) -> str:
        """A hash of the whole configuration."""
        return hashlib.sha256(self.config_json.encode()).hexdigest()[:20]

    @property
    def label(self) -> str:
        """The knobs in short: ``r=13``; and the tower, if it is the other one."""
        return ", ".join(f"{name}={_short(value)}" for name, value in {**self.knobs, **self._elsewhere}.items())

    @property
    def _elsewhere(self) -> dict[str, str]:
        return {} if self.tower == "vision" else {"tower": self.tower}

    def __str__(self) -> str:
        knobs = f"({self.label})" if self.label else ""
        return f"{self.model} {self.method or UNPATCHED}{knobs}"

    def build(self) -> Method | None:
        """The method; ``None`` for the unpatched model."""
        return None if self.method is None else create_method(self.method, **self.knobs)


def _short(value: Any) -> str:
    return "[" + " ".join(_short(v) for v in value) + "]" if isinstance(value, tuple) else str(value)
