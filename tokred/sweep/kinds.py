"""What a sweep can be about: encoders, CLIPs, multimodal models, tokenizers. One entry a kind; nothing else asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokred.assets import list_models, load_model
from tokred.clip_assets import is_clip, require_clip
from tokred.cost import Cost
from tokred.data import load_dataset, load_vqa
from tokred.errors import DataError, TokredError
from tokred.methods import create_method
from tokred.multimodal_assets import is_multimodal
from tokred.sweep.measure import foresee_encoder, measure, measure_part
from tokred.sweep.point import Point, Settings, TowerName
from tokred.sweep.retrieval import RetrievalSubject, foresee_retrieval, load_pictures, measure_retrieval
from tokred.sweep.subject import Subject
from tokred.sweep.suites import SuiteSubject, find_suite, is_suite
from tokred.sweep.tokenizer import TokenizerSubject, check_length, foresee_tokenizer, measure_tokenizer
from tokred.sweep.vqa import VQASubject, measure_vqa
from tokred.tokenizer_assets import is_tokenizer

Row = dict[str, Any]
Outlook = Cost | TokredError | str
Report = Callable[[float], None]


@dataclass(frozen=True)
class Kind:
    """One kind of models, as data.

    Attributes:
        title: for people.
        claims: whether the name of a model means this kind.
        require_model: look whether there is such a model, without loading weights; DataError.
        load_data: look whether there are such data, given name and split; DataError.
        check: look whether there is a method with such knobs; ConfigError.
        load: model, data, settings and worker processes to what the points of both share.
        measure: the columns of a point.
        take_over: give the subject what the unpatched model said in an earlier run.
        foresee: for a model, what a point will cost, why it will fail, or what it depends on.
        part: what a point gives on shard i of n of the data; ``measure`` takes those of all shards as a fourth
            argument. ``None`` where the data cannot be split.
        metrics: whether more can be measured than what always is.
        towers: the encoders that a method may be put into, by name.
    """

    title: str
    claims: Callable[[str], bool]
    require_model: Callable[[str], None]
    load_data: Callable[[str, str], Any]
    check: Callable[[str, Mapping[str, Any]], Any]
    load: Callable[[str, str, Settings, int], Any]
    measure: Callable[..., Row]
    take_over: Callable[[Any, Row], None]
    foresee: Callable[[str], Callable[[Point], Outlook]]
    part: Callable[[Point, Any, int, int, Report], Any] | None = None
    metrics: bool = False
    towers: tuple[TowerName, ...] = ("vision",)


def kind_of(models: Sequence[str]) -> Kind:
    """What all models of a sweep are.

    Raises:
        DataError: they are of several kinds.
    """
    found = {name: next(kind for kind in KINDS if kind.claims(name)) for name in models}
    kinds = [kind for kind in KINDS if kind in found.values()]
    if len(kinds) > 1:
        members = (f"{kind.title} ({', '.join(n for n in models if found[n] is kind)})" for kind in kinds)
        raise DataError(f"A sweep is about one kind of models; found {' and '.join(members)}. Write two sweeps.")
    return kinds[0]


def require_names(models: Sequence[str], data: Sequence[str] = (), split: str = "test") -> None:
    """Look whether models and data sets exist, without loading weights.

    Raises:
        DataError: one does not; the message gives near names.
    """
    kind = kind_of(models)
    for name in models:
        kind.require_model(name)
    for name in data:
        kind.load_data(name, split)


def _require_encoder(name: str) -> None:
    import timm

    if name not in list_models() and not Path(name).expanduser().is_dir() and not timm.is_model(name):
        load_model(name)  # says what is wrong


def _take_over_classes(subject: Subject | RetrievalSubject, row: Row) -> None:
    if row.get("predictions"):
        subject.classes = torch.tensor(row["predictions"])


def _take_over_answers(subject: VQASubject, row: Row) -> None:
    if row.get("answers"):
        subject.classes = tuple(row["answers"])


def _find_questions(data: str, split: str) -> Any:
    return find_suite(data) if is_suite(data) else load_vqa(data, split)


def _load_questions(model: str, data: str, settings: Settings, workers: int) -> VQASubject:
    return (SuiteSubject if is_suite(data) else VQASubject).load(model, data, settings, workers)


def _create(method: str, knobs: Mapping[str, Any]) -> Any:
    return create_method(method, **knobs)


def _anything(name: str) -> bool:
    return True


def _foresee_answers(model: str) -> Callable[[Point], Outlook]:
    return lambda point: "depends on the prompts"


def _nothing(*args: Any) -> None:
    """Nothing to look for, or nothing to take over."""


KINDS = (
    Kind(
        "tokenizers", is_tokenizer, _nothing, load_dataset, check_length, TokenizerSubject.load, measure_tokenizer,
        _nothing, foresee_tokenizer,
    ),
    Kind(
        "CLIP models", is_clip, require_clip, load_pictures, _create, RetrievalSubject.load, measure_retrieval,
        _take_over_classes, foresee_retrieval, towers=("vision", "text"),
    ),
    Kind(
        "multimodal models", is_multimodal, _nothing, _find_questions, _create, _load_questions, measure_vqa,
        _take_over_answers, _foresee_answers,
    ),
    Kind(
        "image encoders", _anything, _require_encoder, load_dataset, _create, Subject.load, measure,
        _take_over_classes, foresee_encoder, part=measure_part, metrics=True,
    ),
)  # fmt: skip
