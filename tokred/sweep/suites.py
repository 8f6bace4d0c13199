"""Points of multimodal models on suites of lmms-eval: its documents, its prompts, its scores."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokred.adapters.multimodal import find_multimodal
from tokred.errors import DataError
from tokred.extra import need
from tokred.multimodal_assets import load_multimodal
from tokred.sweep.point import Settings
from tokred.sweep.vqa import Answers, VQASubject

SUITE = "lmms-eval:"
"""What the names of such data begin with."""
_PLUGIN = "tokred"  # the name by which tasks may know what asks them
_SHOWN_NAMES = 4
_BOOTSTRAPS = 1000  # for the few metrics whose standard error has no formula
_need = partial(need, extra="eval", purpose=f"Data called {SUITE}... need")


@dataclass(frozen=True, eq=False)
class Suite:
    """A task of lmms-eval, known by name; its documents are not there yet.

    Attributes:
        task: its name.
        manager: lmms-eval's index, in which it stands.
    """

    task: str
    manager: Any


def is_suite(data: str) -> bool:
    """Say whether a name of data means a suite."""
    return data.startswith(SUITE)


def find_suite(data: str) -> Suite:
    """Look for ``lmms-eval:<task>``, or ``lmms-eval:<file>.yaml`` with a task of your own; nothing is fetched.

    Raises:
        DataError: there is no such task, or it is a group of several; the message gives names.
        TokredError: lmms-eval is not installed.
    """
    name = data.removeprefix(SUITE)
    path = Path(name).expanduser()
    if path.suffix != ".yaml":
        return _named(name, _manager(None))
    _need("lmms_eval.tasks")
    if not path.is_file():
        raise DataError(f"{data}: the file {path} does not exist. It would describe a task of lmms-eval.")
    manager = _manager(path.parent)
    for task, entry in manager.task_index.items():
        if entry["yaml_path"] != -1 and Path(entry["yaml_path"]).resolve() == path.resolve():
            return _named(task, manager)
    raise DataError(f"{data}: {path} describes no task of lmms-eval: there is no key 'task' with a name in it.")


class SuiteSubject(VQASubject):
    """One multimodal model with one suite; lmms-eval asks the questions and judges the answers."""

    def __init__(self, model: Any, processor: Any, suite: Suite, settings: Settings) -> None:
        super().__init__(model, processor, (), settings)
        self.suite, self.settings = suite, settings

    @classmethod
    def load(cls, model: str, data: str, settings: Settings, workers: int = 0) -> SuiteSubject:
        """Load a model, and look for the task that a sweep asks for.

        Raises:
            DataError: one of them cannot be had.
            TokredError: lmms-eval is not installed.
        """
        suite = find_suite(data)
        return cls(*load_multimodal(model), suite, settings)

    @cached_property
    def first(self) -> dict[str, Any]:
        """The inputs of the first batch with images, which all timings use; it is there once questions were asked."""
        raise DataError(f"{self.suite.task} shows no images, so there is nothing to reduce.")

    def answer(self, model: Any, handle: Any, report: Callable[[float], None] | None = None) -> Answers:
        """Let lmms-eval ask a model."""
        from tokred.integrations.lmms_eval import Answerer

        placeholder = find_multimodal(model).inner.config.image_token_id
        tokens: list[float] = []
        newlines: list[float] = []

        def look(inputs: Mapping[str, Any]) -> None:
            shown = (inputs["input_ids"] == placeholder).sum(dim=1).tolist()
            if any(shown) and "first" not in vars(self):
                self.first = dict(inputs)
            if handle is None or not any(shown):  # all of them enter; a batch without images leaves no trace
                tokens.extend(shown)
                newlines.extend(0 for _ in shown if handle is not None)
                return
            counts = handle.trace.visual_tokens_of_prompts
            tokens.extend(sum(image.tokens for image in prompt) for prompt in counts)
            newlines.extend(sum(image.newlines for image in prompt) for prompt in counts)

        asked = Answerer(model, self.processor, self.batch_size, look, report or (lambda share: None))
        found = self._evaluate(asked)
        samples = {sample["doc_id"]: sample["filtered_resps"] for sample in found["samples"][self.suite.task]}
        return Answers(
            tuple(_said(samples[document]) for document in sorted(samples)),
            score_columns(found, self.suite.task),
            sum(tokens) / max(len(tokens), 1),
            sum(newlines) / len(newlines) if newlines else None,
        )

    def counts(self) -> Answers:
        """The same as the reference: of the unpatched model every visual token of a prompt enters."""
        return self.reference

    def _evaluate(self, asked: Any) -> dict[str, Any]:
        evaluator, seed = _need("lmms_eval.evaluator"), self.settings.seed
        try:
            with TemporaryDirectory() as submissions, _quiet():
                return evaluator.simple_evaluate(
                    model=asked, tasks=[self.suite.task], task_manager=self.suite.manager, limit=self.settings.images,
                    random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, bootstrap_iters=_BOOTSTRAPS,
                    cli_args=Namespace(output_path=submissions, process_with_media=False),
                    distributed_executor_backend="torchrun",  # which sets up nothing for one process
                    process_docs_parallel=1,
                )  # fmt: skip
        except Exception as error:
            if type(error).__name__ == "RetryError" and error.__cause__ is not None:  # which says nothing itself
                raise error.__cause__ from error
            raise


def score_columns(found: Mapping[str, Any], task: str) -> dict[str, Any]:
    """What lmms-eval says about the answers: its main metric, which is the first that the task lists, and all others.

    Raises:
        DataError: it says no number.
    """
    said: Mapping[str, Any] = found["results"][task]
    numbers = {
        name.removesuffix(",none"): float(value)
        for name, value in said.items()
        if isinstance(value, Real) and "_stderr" not in name
    }
    listed = [entry["metric"] for entry in found["configs"][task].get("metric_list") or ()]
    main = next((name for metric in listed for name in numbers if name.partition(",")[0] == metric), None)
    if main is None:
        raise DataError(
            f"{task} gives no score by itself ({', '.join(map(str, listed)) or 'no metrics'}); its answers are "
            "judged elsewhere. Choose a task whose answers are public, such as one of validation."
        )
    metric, _, chosen = main.partition(",")
    error = said.get(f"{metric}_stderr,{chosen or 'none'}")
    less = found.get("higher_is_better", {}).get(task, {}).get(metric) is False
    return {
        "metric": main,
        "score": numbers[main],
        "score_stderr": float(error) if isinstance(error, Real) else None,
        "scores": json.dumps(numbers),
        "lmms_eval": _version(),
        **({"note": f"{task}: of its {metric} less is better"} if less else {}),
    }


def _version() -> str | None:
    try:
        return version("lmms-eval")
    except PackageNotFoundError:  # a checkout that nobody installed
        return None


@cache
def _manager(folder: Path | None) -> Any:
    """The index of lmms-eval's own tasks, or of those in a folder."""
    tasks = _need("lmms_eval.tasks")
    with _quiet():
        if folder is None:
            return tasks.TaskManager(model_name=_PLUGIN)
        return tasks.TaskManager(include_path=str(folder), include_defaults=False, model_name=_PLUGIN)


def _named(name: str, manager: Any) -> Suite:
    """Raises DataError if that is no single task."""
    index = manager.task_index
    kind = index[name]["type"] if name in index else None
    if kind in ("task", "python_task"):
        return Suite(name, manager)
    single = [task for task, entry in index.items() if entry["type"] in ("task", "python_task")]
    if kind is None:
        near = get_close_matches(name, single, n=_SHOWN_NAMES, cutoff=0.4)
        hint = f"Did you mean {', '.join(near)}?" if near else "lmms_eval --tasks list prints all of them."
        raise DataError(f"lmms-eval has no task {name!r}. {hint}")
    members = index[name]["task"] if kind == "tag" else [task for task in single if task.startswith(name)]
    names = f", such as {', '.join(SUITE + task for task in members[:_SHOWN_NAMES])}" if members else ""
    raise DataError(f"{name!r} is a group of tasks, and a point is about a single one{names}.")


def _said(replies: Sequence[Any]) -> str:
    """What a model said about one document; of several choices the number of the likeliest."""
    if isinstance(replies[0], tuple):
        return str(min(range(len(replies)), key=lambda at: replies[at][0]))
    return "\n".join(map(str, replies))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lmms-eval's log and with what it prints away from stdout, where results of our own may go."""
    logger = _need("loguru").logger
    logger.disable("lmms_eval")
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.enable("lmms_eval")
