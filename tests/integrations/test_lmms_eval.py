"""lmms-eval's suites run on a patched model."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from tests.lmms import INSTALLED, noise, write_task
from tests.multimodal import recipe
from tokred.data.easy_vqa import easy_vqa_sample
from tokred.errors import ConfigError
from tokred.train.vqa_model import build_multimodal, build_processor


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("model")
    spec = recipe("llava").task.model
    processor = build_processor(spec)
    torch.manual_seed(0)
    build_multimodal(spec, processor).save_pretrained(place)
    processor.save_pretrained(place)
    return str(place)


@pytest.fixture
def plugin(lmms_eval: None) -> Any:
    import tokred.integrations.lmms_eval as module

    return module


def requests(count: int) -> tuple[list[Any], dict[str, Any]]:
    docs = [{"image": document.image, "text": document.question} for document in noise(count)]
    settings = {"max_new_tokens": 3, "do_sample": False}
    asked = [
        SimpleNamespace(args=(doc["text"], dict(settings), lambda doc: [doc["image"]], index, "task", "test"))
        for index, doc in enumerate(docs)
    ]
    return asked, {"task": {"test": docs}}


def test_answers_do_not_depend_on_the_batch_and_keep_their_order(plugin: Any, model_folder: str):
    answers = []
    for size in (1, 4):
        model = plugin.Tokred(model_folder, method="fopru", keep=0.25, batch_size=size, device="cpu")
        asked, model.task_dict = requests(5)
        answers.append(model.generate_until(asked))
    assert answers[0] == answers[1]
    assert len(answers[0]) == 5


def test_the_method_is_in_the_model(plugin: Any, model_folder: str):
    model = plugin.Tokred(model_folder, method="fopru", keep=0.25, device="cpu")
    asked, model.task_dict = requests(1)
    model.generate_until(asked)
    assert [tokens.tokens for tokens in model.handle.trace.visual_tokens] == [4]


def test_answers_end_where_the_task_says(plugin: Any):
    assert plugin._until("yes\n\nno", ["\n\n"]) == "yes"
    assert plugin._until(" yes ", None or []) == "yes"


def test_the_continuation_that_the_model_writes_is_the_likeliest(plugin: Any):
    model = plugin.Tokred("llava-shapes", method="fopru", keep=0.25, device="cpu")
    sample = easy_vqa_sample("test")
    docs = [{"image": to_pil_image(sample[i].image), "text": sample[i].question} for i in (0, 40)]
    model.task_dict = {"task": {"test": docs}}
    for index, doc in enumerate(docs):
        place = (lambda doc: [doc["image"]], index, "task", "test")
        (written,) = model.generate_until([SimpleNamespace(args=(doc["text"], {"max_new_tokens": 1}, *place))])
        choices = [written, *({"yes", "no", "circle", "red", "teal"} - {written})]
        targets = [*choices, lambda _, other=choices[1]: other]
        found = model.loglikelihood([SimpleNamespace(args=(doc["text"], target, *place)) for target in targets])
        assert found.pop() == found[1], "a target may be read off the document"
        assert [greedy for _, greedy in found] == [True] + [False] * (len(choices) - 1)
        assert min(found) == found[0]
        assert found[0][0] < 1, "a trained model is fairly sure"


def test_a_task_asks_round_by_round_and_is_told_the_answers_so_far(plugin: Any):
    model = plugin.Tokred("llava-shapes", method="fopru", keep=0.25, device="cpu")
    sample = easy_vqa_sample("test")
    docs = [[(to_pil_image(sample[i].image), sample[i].question) for i in part] for part in ((0, 40, 80), (10,))]
    model.task_dict = {"task": {"test": docs}}
    told: list[tuple[int, list[str], Any]] = []

    def to_text(doc: Any, previous_output: list[str], round_idx: int, previous_round_info: Any) -> tuple[Any, ...]:
        told.append((round_idx, list(previous_output), previous_round_info))
        if round_idx == len(doc):
            return None, None, True, previous_output, None
        image, question = doc[round_idx]
        return [image], question, False, previous_output, f"behind round {round_idx}"

    settings = {"max_new_tokens": 1}
    found = model.generate_until_multi_round(
        [
            SimpleNamespace(args=(doc[0][1], settings, lambda doc: [doc[0][0]], to_text, index, "task", "test"))
            for index, doc in enumerate(docs)
        ]
    )
    model.task_dict = {"task": {"test": [pair for doc in docs for pair in doc]}}
    single = model.generate_until(
        [
            SimpleNamespace(args=(text, settings, lambda pair: [pair[0]], index, "task", "test"))
            for index, (_, text) in enumerate(model.task_dict["task"]["test"])
        ]
    )
    assert found == [single[:3], single[3:]]
    assert told[:3] == [
        (1, single[:1], None),
        (2, single[:2], "behind round 1"),
        (3, single[:3], "behind round 2"),
    ]
    assert told[3:] == [(1, single[3:], None)]


def test_knobs_without_a_method_are_refused(plugin: Any, model_folder: str):
    with pytest.raises(ConfigError, match="method="):
        plugin.Tokred(model_folder, keep=0.5)


def test_the_entry_point_names_a_class_that_is_there(plugin: Any):
    module, _, name = plugin.manifest().simple_class_path.rpartition(".")
    assert getattr(sys.modules[module], name) is plugin.Tokred


@pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed; it comes with the extra 'eval'")
def test_a_local_task_of_lmms_eval_runs_from_end_to_end(plugin: Any, model_folder: str, tmp_path: Path):
    import lmms_eval.models
    from lmms_eval import evaluator
    from lmms_eval.models.registry_v2 import ModelRegistryV2
    from lmms_eval.tasks import TaskManager

    write_task(tmp_path, noise(3))
    registry = next(value for value in vars(lmms_eval.models).values() if isinstance(value, ModelRegistryV2))
    registry.register_manifest(plugin.manifest(), overwrite=True)
    results = evaluator.simple_evaluate(
        model="tokred", model_args=f"pretrained={model_folder},method=fopru,keep=0.25", tasks=["tiny_local"],
        batch_size=2, task_manager=TaskManager(include_path=str(tmp_path)), device="cpu",
    )  # fmt: skip
    assert results["results"]["tiny_local"]["exact_match,none"] == 0.0
