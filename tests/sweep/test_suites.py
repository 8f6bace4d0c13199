"""Tasks of lmms-eval are data of a sweep; where it is not installed, a stand-in asks in its place."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torchvision.transforms.functional import to_pil_image

from tests.lmms import INSTALLED, Case, noise, write_task
from tokred.cli.tables import result_tables
from tokred.data import load_vqa
from tokred.errors import DataError, TokredError
from tokred.sweep import (
    Document,
    compare_results,
    estimate_seconds,
    parse_spec,
    plot_results,
    preview,
    run_sweep,
    suites,
    write_report,
)
from tokred.sweep.compare import two_means
from tokred.sweep.suites import find_suite, score_columns

METHODS = [{"method": "fopru", "keep": {"grid": [0.5, 2]}}]


@pytest.fixture
def suite(lmms_eval: None, tmp_path: Path) -> str:
    return f"lmms-eval:{write_task(tmp_path / 'suite', noise(5))}"


def spec_of(model: str, data: str, **more: Any) -> Any:
    content = {"models": model, "data": data, "methods": METHODS, "batch_size": 2, "rounds": 2, "threads": 1}
    return parse_spec(Document({**content, **more}))


def test_a_row_has_the_score_of_the_suite_beside_tokens_costs_and_times(llava_folder: str, suite: str, tmp_path: Path):
    rows = run_sweep(spec_of(llava_folder, suite), tmp_path / "runs")
    assert [row["status"] for row in rows] == ["finished"] * 3, [row.get("error") for row in rows]
    assert [row["visual_tokens"] for row in rows] == [16, 8, 2]
    assert rows[0]["agreement"] == 100
    for row in rows:
        assert (row["images"], row["metric"], row["score"]) == (5, "exact_match", 0.0)
        assert row["scores"] == '{"exact_match": 0.0}'
        assert all(row[name] > 0 for name in ("seconds", "prefill_ms", "decode_ms", "gmacs"))
    assert rows[2]["gmacs"] < rows[1]["gmacs"] < rows[0]["gmacs"]
    headers = [column.header for column in next(result_tables(rows)).columns]
    assert {"metric", "score", "visual tokens", "agree %"} <= set(headers)
    assert "exact %" not in headers
    assert all(file.is_file() for file in plot_results(tmp_path / "runs", x="gmacs", y="score"))
    assert "score of the suite over GMACs" in write_report(tmp_path / "runs").read_text()


def test_a_resumed_sweep_takes_the_unpatched_answers_from_disk(llava_folder: str, suite: str, tmp_path: Path):
    first = run_sweep(spec_of(llava_folder, suite), tmp_path / "runs")
    (tmp_path / "runs" / "points" / f"{first[1]['key']}.parquet").unlink()
    again = run_sweep(spec_of(llava_folder, suite), tmp_path / "runs", resume=True)
    assert again[1]["agreement"] == first[1]["agreement"]
    assert [row["date"] for row in (again[0], again[2])] == [row["date"] for row in (first[0], first[2])]


def test_images_is_how_many_documents_are_asked_about(llava_folder: str, suite: str, tmp_path: Path):
    rows = run_sweep(spec_of(llava_folder, suite, images=3), tmp_path / "runs")
    assert [row["images"] for row in rows] == [3, 3, 3]


def test_prompts_without_an_image_count_as_prompts_without_tokens(llava_folder: str, lmms_eval: None, tmp_path: Path):
    documents = [Case(None, "what?", "x")] * 3 + noise(3)
    data = f"lmms-eval:{write_task(tmp_path / 'suite', documents)}"
    rows = run_sweep(spec_of(llava_folder, data, batch_size=2), tmp_path / "runs")
    assert [row["visual_tokens"] for row in rows] == [8, 4, 1], [row.get("error") for row in rows]
    nothing = f"lmms-eval:{write_task(tmp_path / 'words', documents[:1], name='words')}"
    rows = run_sweep(spec_of(llava_folder, nothing), tmp_path / "runs")
    assert "words shows no images" in rows[0]["error"]


def test_the_shipped_model_answers_and_loses_score_with_its_tokens(lmms_eval: None, tmp_path: Path):
    sample = load_vqa("easy-vqa-sample")
    examples = [sample[index] for index in range(0, 60, 10)]
    documents = [Case(to_pil_image(e.image), e.question, e.answer) for e in examples]
    data = f"lmms-eval:{write_task(tmp_path / 'suite', documents)}"
    methods = [{"method": "random_visual", "keep": 1}]
    rows = run_sweep(spec_of("llava-shapes", data, methods=methods, rounds=1), tmp_path / "runs")
    assert rows[0]["score"] > 0.8, rows[0].get("error")
    assert rows[1]["score"] < rows[0]["score"]
    assert rows[1]["agreement"] < 100


def test_two_runs_are_compared_by_standard_errors(llava_folder: str, suite: str, tmp_path: Path):
    spec = spec_of(llava_folder, suite)
    for name in "ab":
        run_sweep(spec, tmp_path / name)
    found = [one for one in compare_results(tmp_path / "a", tmp_path / "b") if one.column == "score"]
    assert [(one.test, one.is_real) for one in found] == [("standard errors", False)] * 3
    assert two_means(0.6, 0.01, 0.7, 0.01) < 1e-6 < two_means(0.6, 0.1, 0.7, 0.1)


def test_of_several_choices_the_likeliest_is_the_answer():
    assert suites._said([(2.5, False), (0.5, True), (1.5, False)]) == "1"
    assert suites._said(["yes"]) == "yes"


def test_what_a_suite_stumbles_over_is_the_error_of_the_point(
    llava_folder: str, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class RetryError(Exception):
        pass

    def stumble(**settings: Any) -> None:
        raise RetryError("<Future at 0x7f>") from KeyError("answer")

    monkeypatch.setattr(importlib.import_module("lmms_eval.evaluator"), "simple_evaluate", stumble)
    rows = run_sweep(spec_of(llava_folder, suite), tmp_path / "runs")
    assert [row["error"] for row in rows] == ["KeyError: 'answer'"] * 3


@pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed; it comes with the extra 'eval'")
def test_the_suites_that_ship_in_a_sweep_are_ones_of_lmms_eval(lmms_eval: None):
    from tokred.sweep import load_spec

    for data in load_spec("llava").data:
        assert find_suite(data).task in data
    with pytest.raises(DataError, match=r"no task 'gqaa'\. Did you mean gqa"):
        find_suite("lmms-eval:gqaa")
    with pytest.raises(DataError, match=r"'textvqa' is a group of tasks.*lmms-eval:textvqa_"):
        find_suite("lmms-eval:textvqa")


def test_a_sweep_over_suites_is_planned_without_lmms_eval(llava_folder: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    spec = spec_of(llava_folder, ["lmms-eval:gqa", "lmms-eval:pope"])
    planned = preview(spec)
    assert [point.data for point, _ in planned] == ["lmms-eval:gqa"] * 3 + ["lmms-eval:pope"] * 3
    assert estimate_seconds(spec, planned) == [None] * 6


def test_without_the_extra_a_sweep_says_what_to_type_before_it_begins(
    llava_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    suites._manager.cache_clear()
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(TokredError, match=r"Data called lmms-eval:... need lmms_eval.*pip install 'tokred\[eval\]'"):
        run_sweep(spec_of(llava_folder, "lmms-eval:gqa"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_tasks_that_are_not_there_are_answered_with_near_names(monkeypatch: pytest.MonkeyPatch):
    index: dict[str, Any] = {name: {"type": "task"} for name in ("gqa", "gqa_lite", "pope", "mme", "text_val")}
    index |= {"text": {"type": "group", "task": -1}, "easy": {"type": "tag", "task": ["pope", "mme"]}}
    monkeypatch.setattr(suites, "_manager", lambda folder: SimpleNamespace(task_index=index))
    assert find_suite("lmms-eval:gqa").task == "gqa"
    for name, hint in (
        ("gqqa", "Did you mean gqa, gqa_lite"),
        ("%", "tasks list prints all"),
        ("text", "'text' is a group of tasks.* such as lmms-eval:text_val"),
        ("easy", "'easy' is a group of tasks.* such as lmms-eval:pope, lmms-eval:mme"),
    ):
        with pytest.raises(DataError, match=hint):
            find_suite(f"lmms-eval:{name}")


def test_a_file_that_describes_no_task_is_refused(lmms_eval: None, tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        find_suite(f"lmms-eval:{tmp_path / 'tiny.yaml'}")
    (tmp_path / "tiny.yaml").write_text("dataset_path: json")
    with pytest.raises(DataError, match="describes no task"):
        find_suite(f"lmms-eval:{tmp_path / 'tiny.yaml'}")


def found(metrics: dict[str, Any], *listed: str, **higher: bool) -> dict[str, Any]:
    return {
        "results": {"t": {"alias": "t", **metrics}},
        "configs": {"t": {"metric_list": [{"metric": name} for name in listed]}},
        "higher_is_better": {"t": higher},
    }


def test_the_main_metric_is_the_first_listed_one_that_is_a_number():
    said = {"submission,none": None, "f1,none": 0.5, "acc,strict": 0.25, "acc_stderr,strict": 0.1, "f1_stderr,none": ""}
    columns = score_columns(found(said, "submission", "acc", "f1"), "t")
    assert (columns["metric"], columns["score"], columns["score_stderr"]) == ("acc,strict", 0.25, 0.1)
    assert columns["scores"] == '{"f1": 0.5, "acc,strict": 0.25}'
    assert "note" not in columns
    other = score_columns(found(said, "f1", f1=False), "t")
    assert (other["metric"], other["score_stderr"]) == ("f1", None)
    assert "less is better" in other["note"]


def test_a_task_that_only_writes_a_submission_is_refused():
    with pytest.raises(DataError, match=r"t gives no score by itself \(submission\)"):
        score_columns(found({"submission,none": None}, "submission"), "t")
