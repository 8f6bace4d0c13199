"""What a sweep measures: one YAML file, checked before anything runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tokred.errors import ConfigError
from tokred.folders import shipped_folder
from tokred.sweep.engines import EngineName
from tokred.sweep.kinds import Kind, kind_of
from tokred.sweep.metrics import MetricName
from tokred.sweep.point import TRAIN_IMAGES, Point, Settings, TowerName
from tokred.sweep.yaml import Document, read_yaml

DType = Literal["float32", "bfloat16", "float16"]


class MethodGrid(BaseModel):
    """One method and its knobs. A knob written ``{grid: [a, b]}`` is tried at each value; any other is one value.

    Attributes:
        method: its name.
        models: on which of the sweep's models; on all if left out.
        paper_top1: what a paper says about it, to stand beside the measured top-1; a number, or one for each model.
        tower: which encoder of a CLIP is reduced, as in :func:`tokred.patch`: of images, or of captions and the names
            of classes. Cost and speed are its own.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str
    models: list[str] | None = None
    paper_top1: float | dict[str, float] | None = None
    tower: TowerName = "vision"

    def paper_says(self, model: str) -> float | None:
        """The top-1 of a paper for that model."""
        return self.paper_top1.get(model) if isinstance(self.paper_top1, dict) else self.paper_top1

    def knobs(self) -> Iterator[dict[str, Any]]:
        """Every combination of the values of all grids."""
        written = self.model_extra or {}
        values = [v["grid"] if _is_grid(v) else [v] for v in written.values()]
        for combination in itertools.product(*values):
            yield {name: _as_tuple(value) for name, value in zip(written, combination, strict=True)}


class SweepSpec(BaseModel):
    """Every method on every model on all data.

    Attributes:
        models: names of shipped models, timm names, or folders with a config.json and a model.safetensors; or
            multimodal models: shipped ones, folders, or ids of the hub; or tokenizers: shipped ones or folders.
        data: names of data sets, or folders with one folder of images a class; for multimodal models sets of
            questions, JSONL files, or tasks of lmms-eval (``lmms-eval:gqa``); one, a list, or a mapping that gives
            every model its own.
        methods: what to try; the unpatched model is always measured too. For tokenizers there is one, ``length``, with
            the knobs tokens, quality, steps and guidance; unpatched, they write all tokens.
        split: which part of the data; tasks of lmms-eval have their own.
        images: how many images, or questions, drawn with the seed, or of a task of lmms-eval the first ones; all of
            them if left out.
        batch_size: images, or prompts, a batch.
        rounds: timed pairs of forward passes, unpatched and patched in turn.
        workers: processes that read images; 0 reads in the main process.
        threads: CPU threads of torch; left as they are if left out.
        device: such as cpu or cuda.
        dtype: of weights and images.
        seed: draws the images.
        paper_top1: what papers say about the unpatched models.
        metrics: what else to measure of image encoders: ``knn`` and ``probe``, top-1 of the 20 nearest neighbours and
            of a linear classifier on features, both made once from what the unpatched model gives to training images;
            ``cosine`` of features with those of the unpatched model; ``energy`` for an image, where NVML counts it;
            ``rss``, the memory that the process holds at the peak of a forward.
        throughput: batch sizes at which images per second are measured as well, of image encoders.
        train_images: how many images of the split "train", drawn with the seed, knn and probe learn from.
        worst: keep so many pictures of each point, of images whose class became wrong, for the report.
        engine: where points are measured: ``local``, on this machine, or ``ray``, on a cluster.
        processes: points that ``local`` measures side by side; if left out, one, and with the device "cuda" one for
            every GPU.
        shards: tasks that the images of one point are split over, at the bounds of batches; they reach the same result.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: list[str] = Field(min_length=1)
    data: list[str] | dict[str, str] = Field(min_length=1)
    methods: list[MethodGrid] = Field(min_length=1)
    split: str = "test"
    images: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=50, gt=0)
    rounds: int = Field(default=10, gt=0)
    workers: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, gt=0)
    device: str = "cpu"
    dtype: DType = "float32"
    seed: int = 0
    paper_top1: dict[str, float] = Field(default_factory=dict)
    metrics: tuple[MetricName, ...] = ()
    throughput: tuple[Annotated[int, Field(gt=0)], ...] = ()
    train_images: int = Field(default=TRAIN_IMAGES, gt=0)
    worst: int = Field(default=0, ge=0)
    engine: EngineName = "local"
    processes: int | None = Field(default=None, gt=0)
    shards: int = Field(default=1, gt=0)

    @field_validator("models", "data", "metrics", "throughput", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | int) else value

    @property
    def settings(self) -> Settings:
        """What is the same for all points."""
        return Settings.of(self)

    def pairs(self) -> list[tuple[str, str]]:
        """Every model with all data, or with its own."""
        if isinstance(self.data, dict):
            return [(model, self.data[model]) for model in self.models]
        return list(itertools.product(self.models, self.data))

    @model_validator(mode="after")
    def _data_for_every_model(self) -> Self:
        if isinstance(self.data, dict) and (missing := [model for model in self.models if model not in self.data]):
            raise ValueError(f"data names none for {', '.join(missing)}")
        return self

    def points(self) -> list[Point]:
        """Every point, model by model and tower by tower, the unpatched model first; each is there once."""
        points: dict[str, Point] = {}
        for model, data in self.pairs():
            here = [grid for grid in self.methods if grid.models is None or model in grid.models]
            towers: dict[TowerName, None] = {grid.tower: None for grid in here} or {"vision": None}
            for tower in towers:
                unpatched = Point(model, data, None, {}, self.settings, self.paper_top1.get(model), tower)
                for point in [unpatched] + [
                    Point(model, data, grid.method, knobs, self.settings, grid.paper_says(model), tower)
                    for grid in here
                    if grid.tower == tower
                    for knobs in grid.knobs()
                ]:
                    points.setdefault(point.key, point)
        return list(points.values())


def load_spec(path: str | Path) -> SweepSpec:
    """Read and check a sweep from a YAML file, or a shipped one by name (``quickstart``).

    Raises:
        ConfigError: no such file, no YAML, an unknown key or a wrong value; the message names its place and line.
    """
    return parse_spec(load_document(path))


def load_document(path: str | Path) -> Document:
    """Read a sweep file, or a shipped one by name, without checking what it says.

    Raises:
        ConfigError: no such file, or no YAML.
    """
    file = Path(path)
    if not file.is_file():
        known = {p.stem: p for p in sorted(shipped_folder("configs/sweeps").glob("*.yaml"))}
        if str(path) not in known:
            near = get_close_matches(file.stem, known, n=3, cutoff=0.4) or list(known)
            raise ConfigError(f"No sweep file or shipped sweep {str(path)!r}. Shipped: {', '.join(near)}.")
        file = known[str(path)]
    return read_yaml(file)


def parse_spec(document: Document) -> SweepSpec:
    """Check what a file, or the command line, asks for.

    Raises:
        ConfigError: an unknown key, method or knob, or a wrong value.
    """
    try:
        spec = SweepSpec.model_validate(document.content)
    except ValidationError as error:
        raise ConfigError(" ".join(_sentence(document, entry) for entry in error.errors())) from error
    kind = kind_of(spec.models)
    for key in ("metrics", "throughput"):
        if getattr(spec, key) and not kind.metrics:
            raise ConfigError(f"{document.place(key)}: {kind.title} have no further metrics. Leave it out.")
    for index, grid in enumerate(spec.methods):
        if unknown := sorted(set(grid.models or ()) - set(spec.models)):
            place = document.place("methods", index, "models")
            raise ConfigError(f"{place}: {unknown[0]!r} is none of the sweep's models ({', '.join(spec.models)}).")
        if grid.tower not in kind.towers:
            _require_models(spec, kind)
            place = document.place("methods", index, "tower")
            raise ConfigError(f"{place}: {kind.title} have no tower {grid.tower!r}; CLIP models have. Leave it out.")
        _check_grids(document, index, grid)
        for knobs in grid.knobs():
            try:
                kind.check(grid.method, knobs)
            except (ConfigError, ValueError, TypeError) as error:
                _require_models(spec, kind)
                named = next((knob for knob in knobs if f"{knob!r}" in str(error) or f"{knob}=" in str(error)), None)
                place = document.place("methods", index, *([named] if named else []))
                raise ConfigError(f"{place}: {error}") from error
    return spec


def _require_models(spec: SweepSpec, kind: Kind) -> None:
    """Say so where a complaint is due to a wrong name, which makes a model of another kind of it."""
    for model in spec.models:
        kind.require_model(model)


def _sentence(document: Document, entry: Mapping[str, Any]) -> str:
    place = document.place(*entry["loc"])
    if not entry["loc"]:
        return f"{place}: a sweep is a mapping with the keys {', '.join(SweepSpec.model_fields)}."
    if entry["type"] == "extra_forbidden":
        key = str(entry["loc"][-1])
        near = get_close_matches(key, SweepSpec.model_fields, n=1, cutoff=0)[0]
        return f"{place}: unknown key {key!r}; did you mean {near!r}?"
    if entry["type"] == "missing":
        return f"{place}: the key {entry['loc'][-1]!r} is missing."
    if entry["type"] == "literal_error":
        known = re.findall("'([^']*)'", entry["ctx"]["expected"])
        near = get_close_matches(str(entry["input"]), known, n=1, cutoff=0)[0]
        return f"{place}: no {entry['input']!r}; did you mean {near!r}? There are: {', '.join(known)}."
    return f"{place}: {entry['msg']} (found {entry['input']!r})."


def _check_grids(document: Document, index: int, grid: MethodGrid) -> None:
    for knob, value in (grid.model_extra or {}).items():
        if isinstance(value, dict) and not _is_grid(value):
            place = document.place("methods", index, knob)
            raise ConfigError(f"{place}: several values are written {{grid: [a, b]}} (found {value!r}).")


def _is_grid(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and list(value) == ["grid"]
        and isinstance(value["grid"], list)
        and len(value["grid"]) > 0
    )


def _as_tuple(value: Any) -> Any:
    """YAML knows lists only, and knobs are tuples."""
    return tuple(_as_tuple(v) for v in value) if isinstance(value, list) else value
