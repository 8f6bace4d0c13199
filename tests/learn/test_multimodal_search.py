"""Knobs between the layers of a language model are found as schedules are, and work as they are written."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import tokred
from tests.learn.tiny_llava import build_llava
from tokred.data import Question, VQADataset
from tokred.errors import BudgetError, ConfigError, DataError
from tokred.learn import Knobs, MultimodalSpec, make_rate_space, run_multimodal_search
from tokred.learn.choice import from_record, to_record
from tokred.learn.multimodal_search import Answers, seeds_of
from tokred.learn.rates import LayerRates
from tokred.methods.p_sigmoid import keep_counts
from tokred.multimodal_cost import prefill_cost
from tokred.sweep.spec import MethodGrid

SPEC = MultimodalSpec("tiny", "p_sigmoid", "noise", quality="agreement", questions=8, batch_size=8, threads=1)


@pytest.fixture
def spec(llava_folder: str, question_file: str) -> MultimodalSpec:
    return replace(SPEC, model=llava_folder, data=question_file)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Knobs]:
    """The settings that are really measured."""
    seen: list[Knobs] = []

    def spy(self: Answers, schedule: Knobs, *rest: Any) -> Any:
        seen.append(schedule)
        return measure(self, schedule, *rest)

    measure = Answers.__call__
    monkeypatch.setattr(Answers, "__call__", spy)
    return seen


@pytest.mark.parametrize("space", ["sigmoid", "rates"])
def test_the_front_is_never_worse_than_the_law_it_starts_from_and_its_files_work(
    spec: MultimodalSpec, tmp_path: Path, space: str
):
    outcome = run_multimodal_search(replace(spec, space=space), tmp_path, trials=9)
    assert outcome.tried == 9
    laws = [trial for trial in outcome.front.trials if trial.origin is not None]
    assert len(laws) == 5
    for law in laws:
        assert any(
            best.columns["gmacs"] <= law.columns["gmacs"] and best.columns["agreement"] >= law.columns["agreement"]
            for best in outcome.front.best
        )
    assert outcome.files
    for file, trial in zip(outcome.files, outcome.front.best, strict=True):
        entry = yaml.safe_load(file.read_text())
        [knobs] = MethodGrid.model_validate(entry).knobs()
        method = tokred.create_method(entry["method"], **knobs)
        assert Knobs(knobs) == trial.schedule
        model, _ = build_llava()
        with tokred.patch(model, method):
            pass
    record = json.loads((tmp_path / "search.json").read_text())
    assert {tuple(entry["knobs"]) for entry in record["trials"]} <= {("budget", "steepness"), ("rates",)}
    assert (tmp_path / "pareto.png").is_file()
    assert "GMACs of the language model per prompt" in (tmp_path / "pareto.html").read_text()


def test_an_interrupted_search_keeps_what_is_finished_and_goes_on(
    spec: MultimodalSpec, tmp_path: Path, measured: list[Knobs], monkeypatch: pytest.MonkeyPatch
):
    def interrupt(self: Answers, schedule: Knobs, *rest: Any) -> Any:
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(self, schedule, *rest)

    measure = Answers.__call__
    with monkeypatch.context() as patched:
        patched.setattr(Answers, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_multimodal_search(spec, tmp_path, trials=7)
    record = json.loads((tmp_path / "search.json").read_text())
    assert [entry["origin"] for entry in record["trials"]] == ["own law at 5%", "own law at 18.75%", "own law at 32.5%"]
    outcome = run_multimodal_search(spec, tmp_path, trials=7)
    assert (outcome.tried, len(measured)) == (7, 7)
    with pytest.raises(ConfigError, match="holds a search with space 'sigmoid'; this one has space 'rates'"):
        run_multimodal_search(replace(spec, space="rates"), tmp_path, trials=8)


def test_what_is_measured_is_what_the_layers_saw(questions: VQADataset):
    model, processor = build_llava()
    spec = replace(SPEC, questions=None)
    objective = Answers(model, processor, questions, spec)
    shares: list[float] = []
    rates = (1.0, 0.5, 0.5, 0.0)
    found = objective(Knobs({"rates": rates}), shares.append)
    assert shares[-1] == 1
    assert found["tokens_per_layer"] == list(keep_counts(rates, 16)) == [16, 8, 8, 0]
    macs = [prefill_cost(model, size.text, [16, 8, 8, 0]) for size in objective.sizes]
    assert found["gmacs"] == pytest.approx(sum(macs) / len(macs) / 1e9)
    unpatched = objective.unpatched()
    assert unpatched["agreement"] == 100
    assert unpatched["tokens_per_layer"] == [16] * 4
    assert unpatched["gmacs"] > found["gmacs"]
    assert unpatched["images"] == len(questions)


def test_keeping_everything_answers_and_costs_the_same(questions: VQADataset):
    model, processor = build_llava()
    objective = Answers(model, processor, questions, SPEC)
    assert objective(Knobs({"budget": 1.0})) == objective.unpatched()


def test_right_answers_are_counted(questions: VQADataset):
    model, processor = build_llava()
    said = Answers(model, processor, questions, SPEC).reference.answers
    told = [Question(q.picture, q.text, answer or "x") for q, answer in zip(questions.questions, said, strict=True)]
    objective = Answers(model, processor, VQADataset(questions.pictures, told), SPEC)
    assert objective.unpatched()["exact_match"] == 100 * sum(map(bool, said)) / len(said)


@pytest.mark.parametrize("budget", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("weights", [(1.0, 0.2, -0.5), (-1.0, -1.0, -1.0), (-1.0, -1.0, 0.01)])
def test_rates_never_rise_and_meet_their_budget(budget: float, weights: tuple[float, ...]):
    space = LayerRates(4, 0.01, 1.0)
    numbers = {"budget": budget, **{f"layer {i}": w for i, w in enumerate(weights, 1)}}
    rates = space.schedule(numbers).values["rates"]
    assert rates[0] == 1
    assert all(a >= b for a, b in pairwise(rates))
    assert sum(rates[1:]) / 3 == pytest.approx(budget, abs=1e-3)
    tokred.PSigmoid(rates=rates)


@pytest.mark.parametrize("name", ["sigmoid", "rates"])
def test_the_seeds_lie_in_the_space_and_stand_for_nearly_themselves(name: str):
    space = make_rate_space(name, 6, "10%", "60%", 100)
    for seed in seeds_of(space):
        assert seed.numbers.keys() == space.ranges.keys()
        assert all(space.ranges[n].low <= value <= space.ranges[n].high for n, value in seed.numbers.items())
        law = tokred.PSigmoid(**dict(seed.schedule.values)).curve(6)  # type: ignore[union-attr]
        near = tokred.PSigmoid(**dict(space.schedule(seed.numbers).values)).curve(6)
        assert near[1:] == pytest.approx(law[1:], abs=0.05)


def test_budgets_in_tokens_are_shares_of_the_visual_tokens():
    space = make_rate_space("sigmoid", 6, "32 tokens", "50%", 256)
    assert (space.low, space.high) == (0.125, 0.5)


def test_knobs_survive_a_journal():
    knobs = Knobs({"rates": (1.0, 0.1 + 0.2)})
    assert from_record(json.loads(json.dumps(to_record(knobs)))) == knobs


@pytest.mark.parametrize(
    ("change", "more", "error", "named"),
    [
        ({"budget_high": "17 tokens"}, {}, BudgetError, "the prompts have 16 visual tokens on average"),
        ({"budget_low": "2 GMACs"}, {}, BudgetError, "budgets are mean visual tokens"),
        ({"budget_low": "70%"}, {}, BudgetError, "above the higher one"),
        ({"data": "easy-vqa-sampel"}, {}, DataError, "easy-vqa-sample"),
        ({"model": "llava-shapse"}, {}, DataError, "llava-shapse"),
        ({}, {"sampler": "nsga"}, ConfigError, "did you mean 'nsga2'"),
        ({}, {"trials": 0}, ConfigError, "trials 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    spec: MultimodalSpec,
    tmp_path: Path,
    change: dict[str, Any],
    more: dict[str, Any],
    error: type[Exception],
    named: str,
):
    with pytest.raises(error, match=named):
        run_multimodal_search(replace(spec, **change), tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"method": "fastv"}, "fastv cannot be searched: no search space is known for it.*p_sigmoid"),
        ({"method": "fopru"}, "fopru cannot be searched: it acts on the features"),
        ({"space": "counts"}, "There are: sigmoid, rates"),
        ({"quality": "top1"}, "There are: exact_match, agreement"),
        ({"questions": 0}, "questions 0: at least 1"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(change: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=named):
        replace(SPEC, **change)


def test_a_file_of_knobs_reads_well(tmp_path: Path):
    Knobs({"rates": (1.0, 0.25), "budget": 1e-5}).save(tmp_path / "a.yaml", "p_sigmoid", "from a test")
    text = (tmp_path / "a.yaml").read_text()
    assert text == "# from a test\nmethod: p_sigmoid\nrates: [1.0, 0.25]\nbudget: 1.0e-05\n"
    assert yaml.safe_load(text)["budget"] == 1e-5
