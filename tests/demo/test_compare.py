"""Compare: results come method by method, files can be read back, the written sweep can be run again."""

from __future__ import annotations

import polars as pl
import pytest
import yaml
from PIL import Image

from tokred.demo import compare, examples
from tokred.errors import ConfigError, DataError
from tokred.sweep import Document, parse_spec


def test_results_come_method_by_method_and_in_files_at_the_end(tmp_path):
    seen = []
    stages = list(
        compare.run(
            "vit-fmnist", ["tome", "topk"], ["65%"], examples.clothes()[:3], "gmacs", tmp_path,
            lambda now: seen.append(now.completed / now.total),
        )
    )  # fmt: skip
    assert [len(stage.rows) for stage in stages] == [2, 3, 3]
    assert [len(stage.files) for stage in stages] == [0, 0, 3]
    assert max(seen) == 1
    table, sweep, page = stages[-1].files
    frame = pl.read_parquet(table)
    assert frame["method"].sort().to_list() == ["tome", "topk", "unpatched"]
    assert frame["agreement"].is_not_null().all()
    assert str(tmp_path) not in sweep.read_text()
    assert "<html" in page.read_text()[:200]
    with Image.open(stages[0].plot) as plot:
        assert plot.width > 400
    assert "tome 65%" in compare.say_rows(stages[-1].rows)


def test_the_written_sweep_can_be_run_again():
    spec = compare.plan("vit-fmnist", ["tome", "topk"], ["65%", "45%"], compare.SAMPLE, 64)
    again = parse_spec(Document(yaml.safe_load(compare.as_yaml(spec))))
    assert again == spec
    assert len(again.points()) == 5


def test_the_sweep_of_own_pictures_says_where_to_put_them(tmp_path):
    spec = compare.plan("vit-fmnist", ["tome"], ["65%"], str(tmp_path), 2)
    written = compare.as_yaml(spec)
    assert written.startswith("# Put your pictures into pictures/all")
    assert yaml.safe_load(written)["data"] == ["pictures"]


@pytest.mark.parametrize(("methods", "budgets"), [([], ["65%"]), (["tome"], [])])
def test_nothing_to_compare_is_said(methods, budgets):
    with pytest.raises(ConfigError, match="Choose at least one method and one budget"):
        compare.plan("vit-fmnist", methods, budgets, compare.SAMPLE, 64)


def test_too_much_to_compare_is_said():
    with pytest.raises(ConfigError, match="7 methods at 4 budgets are 28 points; up to 24"):
        compare.plan("vit-fmnist", ["tome"] * 7, compare.BUDGETS, compare.SAMPLE, 64)


def test_folders_are_no_models():
    with pytest.raises(DataError, match="is no name of a model"):
        compare.plan("/tmp", ["tome"], ["65%"], compare.SAMPLE, 64)


def test_points_that_fail_are_said_below_the_table():
    done = {"status": "finished", "method": "tome", "label": "budget=65%", "top1": None, "agreement": 100.0,
            "gmacs": 1.0, "gmacs_unpatched": 2.0, "speedup": 1.5}  # fmt: skip
    failed = {"status": "failed", "method": "evit", "label": "budget=30%", "error": "BudgetError: out of reach"}
    said = compare.say_rows([done, failed])
    assert "| tome 65% | 100.0 % | 50% | 1.50x |" in said
    assert said.endswith("- evit budget=30%: BudgetError: out of reach")
