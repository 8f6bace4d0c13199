from pathlib import Path
from typing import Any

import pytest

from tokred.errors import DataError
from tokred.sweep import Store, merge_results


def fill(folder: Path, *rows: dict[str, Any]) -> Path:
    for row in rows:
        Store(folder).write({"status": "finished", "date": "2026-01-01", **row})
    return folder


def test_results_of_two_machines_become_one_folder(tmp_path: Path):
    a, b = fill(tmp_path / "a", {"key": "1"}, {"key": "2"}), fill(tmp_path / "b", {"key": "3"})
    merged = merge_results([a, b], tmp_path / "all")
    assert (merged.points, merged.finished, merged.taken, merged.replaced) == (3, 3, 3, 0)
    assert set(Store(tmp_path / "all").read()) == {"1", "2", "3"}
    assert set(Store(a).read()) == {"1", "2"}


def test_a_finished_point_wins_over_a_failed_one_and_the_later_over_the_earlier(tmp_path: Path):
    a = fill(tmp_path / "a", {"key": "1", "status": "failed", "date": "2026-02-01"}, {"key": "2", "top1": 1.0})
    b = fill(tmp_path / "b", {"key": "1"}, {"key": "2", "top1": 2.0, "date": "2026-01-02"})
    for order, out in (([a, b], "one"), ([b, a], "other")):
        assert merge_results(order, tmp_path / out).replaced == 2
        rows = Store(tmp_path / out).read()
        assert (rows["1"]["status"], rows["2"]["top1"]) == ("finished", 2.0)


def test_a_folder_takes_the_results_of_another_in_and_merging_again_changes_nothing(tmp_path: Path):
    a, b = fill(tmp_path / "a", {"key": "1"}), fill(tmp_path / "b", {"key": "2"})
    assert merge_results([a, b], a).taken == 1
    assert merge_results([a, b], a).taken == 0
    assert set(Store(a).read()) == {"1", "2"}


def test_a_folder_without_results_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="nothing holds no results"):
        merge_results([tmp_path / "nothing"], tmp_path / "all")
