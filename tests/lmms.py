"""A task of lmms-eval in three files; and where lmms-eval is not installed, as much of it as tokred uses."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

INSTALLED = importlib.util.find_spec("lmms_eval") is not None
_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function pictures.visual
doc_to_text: !function pictures.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
_FUNCTIONS = """
from PIL import Image
def visual(doc): return [Image.open(doc["image"])] if doc["image"] else []
def text(doc, kwargs=None): return doc["question"]
"""


@dataclass(frozen=True)
class Case:
    """One question about a picture, or about none."""

    image: Image.Image | None
    question: str
    answer: str


def noise(count: int) -> list[Case]:
    """Questions about noise, which nobody answers."""
    pixels = np.random.default_rng(0)
    return [
        Case(Image.fromarray(pixels.integers(0, 256, (16, 16, 3), dtype=np.uint8)), "what?" * (1 + i % 2), "x")
        for i in range(count)
    ]


def write_task(folder: Path, documents: Sequence[Case], name: str = "tiny_local") -> Path:
    """Return the file that describes the task."""
    folder.mkdir(exist_ok=True)
    rows = []
    for index, document in enumerate(documents):
        file = folder / f"{index}.png"
        if document.image is not None:
            document.image.save(file)
        image = str(file) if document.image is not None else ""
        rows.append({"image": image, "question": document.question, "answer": document.answer})
    (folder / "data.json").write_text(json.dumps(rows))
    (folder / "pictures.py").write_text(_FUNCTIONS)
    path = folder / "tiny.yaml"
    path.write_text(_TASK.format(name=name, data=folder / "data.json"))
    return path


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """lmms-eval, or what stands in for it; the plug-in is imported anew."""
    if not INSTALLED:
        for name, module in stand_in().items():
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "tokred.integrations.lmms_eval", raising=False)
    yield
    sys.modules.pop("tokred.integrations.lmms_eval", None)


def stand_in() -> dict[str, ModuleType]:
    """Modules with the names of lmms-eval's that are put where it is not installed."""

    class Base:
        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}

    @dataclass(frozen=True)
    class ModelManifest:
        model_id: str
        simple_class_path: str

    class TaskManager:
        def __init__(self, include_path: str, include_defaults: bool, model_name: str) -> None:
            self.task_index = {}
            for path in Path(include_path).glob("*.yaml"):
                written = yaml.safe_load(path.read_text().replace("!function", ""))
                if "task" in written:
                    self.task_index[written["task"]] = {"type": "task", "yaml_path": str(path)}

    found = {
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "lmms_eval.tasks": {"TaskManager": TaskManager},
        "lmms_eval.evaluator": {"simple_evaluate": _evaluate},
        "loguru": {"logger": SimpleNamespace(enable=lambda name: None, disable=lambda name: None)},
    }
    modules = {name: ModuleType(name) for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models", *found)}
    for name, content in found.items():
        vars(modules[name]).update(content)
    return modules


def _evaluate(model: Any, tasks: list[str], task_manager: Any, limit: int | None, **settings: Any) -> dict[str, Any]:
    """What lmms-eval does with a task of :func:`write_task`, and how it reports it."""
    (task,) = tasks
    data = Path(task_manager.task_index[task]["yaml_path"]).with_name("data.json")
    documents = json.loads(data.read_text())[:limit]
    model.task_dict = {task: {"test": documents}}
    asked = {"max_new_tokens": 4, "do_sample": False}

    def show(document: dict[str, str]) -> list[Image.Image]:
        return [Image.open(document["image"])] if document["image"] else []

    said = model.generate_until(
        [
            SimpleNamespace(args=(document["question"], dict(asked), show, index, task, "test"))
            for index, document in enumerate(documents)
        ]
    )
    right = np.array([answer == document["answer"] for answer, document in zip(said, documents, strict=True)], float)
    error = right.std(ddof=1) / len(right) ** 0.5 if len(right) > 1 else "N/A"
    return {
        "results": {task: {"alias": task, "exact_match,none": right.mean(), "exact_match_stderr,none": error}},
        "configs": {task: {"metric_list": [{"metric": "exact_match"}]}},
        "higher_is_better": {task: {"exact_match": True}},
        "samples": {task: [{"doc_id": i, "filtered_resps": [answer]} for i, answer in enumerate(said)]},
    }
