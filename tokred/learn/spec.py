"""What a search is about: everything that two processes must agree on before they may share a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar, Protocol, get_args

from tokred.errors import ConfigError
from tokred.methods import Method, create_method
from tokred.sweep.axes import Axis, axis
from tokred.sweep.point import Settings
from tokred.sweep.spec import DType

QUALITIES = ("top1", "agreement")
COSTS = {"macs": "gmacs", "latency": "speedup"}  # -> column of the results
_ONLY_TIMED = ("batch_size", "rounds", "threads", "device")  # what does not matter where nothing is timed


class AnySpec(Protocol):
    """What every search has, whatever it looks for.

    Attributes:
        unit: what the data is counted in, for people.
    """

    unit: ClassVar[str]

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def method(self) -> str:
        """The method's name."""
        ...

    @property
    def data(self) -> str:
        """Name of the data."""
        ...

    @property
    def batch_size(self) -> int:
        """Items a batch."""
        ...

    @property
    def device(self) -> str:
        """Where it runs."""
        ...

    @property
    def dtype(self) -> str:
        """Of the weights."""
        ...

    @property
    def seed(self) -> int:
        """Draws what is left to chance."""
        ...

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Cost and quality as axes of a plot."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What decides about the results, as plain data."""
        ...


@dataclass(frozen=True)
class SearchSpec:
    """A search for schedules of one method on one model.

    Attributes:
        model: name of a shipped model, timm name, or folder.
        method: name of the method.
        data: name of a data set, or a folder of class folders.
        knobs: of the method.
        space: "counts" or "sigmoid", see :data:`tokred.learn.SPACES`.
        quality: "top1", or "agreement" with the unpatched model, for which the labels do not matter.
        cost: "macs", or "latency": the measured time beside the unpatched model.
        budget_low: the cheapest schedules, as a budget of MACs or tokens (also where latency is measured).
        budget_high: the dearest.
        split: which part of the data.
        images: how many, drawn with the seed; all of them if ``None``.
        batch_size: images a batch.
        rounds: timed pairs of forward passes for every schedule.
        threads: CPU threads; left as they are if ``None``.
        device: where to run.
        dtype: of weights and images.
        seed: draws the images and the choices.
    """

    unit: ClassVar[str] = "images"

    model: str
    method: str
    data: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    space: str = "counts"
    quality: str = "top1"
    cost: str = "macs"
    budget_low: str = "40%"
    budget_high: str = "80%"
    split: str = "test"
    images: int | None = 400
    batch_size: int = 50
    rounds: int = 10
    threads: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("quality", QUALITIES), ("cost", tuple(COSTS)), ("dtype", get_args(DType))):
            value = getattr(self, name)
            if value not in allowed:
                near = get_close_matches(str(value), allowed, n=1, cutoff=0)[0]
                raise ConfigError(f"{name} {value!r}: did you mean {near!r}? There are: {', '.join(allowed)}.")
        for name in ("images", "batch_size", "rounds"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: at least 1 is needed.")
        taken = sorted({"schedule", "budget"} & self.knobs.keys())
        if taken:
            raise ConfigError(f"The knob {taken[0]!r} is what a search finds; use --budget-low and --budget-high.")
        self.build()

    def build(self) -> Method:
        """The method.

        Raises:
            ConfigError: an unknown method or knob, or a value that it does not take.
        """
        try:
            return create_method(self.method, **self.knobs)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self.method}: {error}") from error

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Cost and quality as axes of a plot."""
        return axis(COSTS[self.cost]), axis(self.quality)

    @property
    def settings(self) -> Settings:
        """What a sweep calls the same things."""
        return Settings.of(self)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides about the results, as plain data: processes that share a study must have the same."""
        config = {**asdict(self), "threads": self.settings.threads}
        config["knobs"] = {name: _plain(value) for name, value in sorted(self.knobs.items())}
        return {name: v for name, v in config.items() if self.cost == "latency" or name not in _ONLY_TIMED}


def _plain(value: Any) -> Any:
    """Tuples as lists, as a file gives them back."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
