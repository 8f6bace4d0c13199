import json
from pathlib import Path

import pytest
from PIL import Image

from tokred import Schedule
from tokred.learn import Front, SearchSpec, Trial
from tokred.learn.front import file_name, write_front
from tokred.sweep import StorageError

SPEC = SearchSpec("m", "tome", "d", quality="agreement")


def columns(gmacs: float, agreement: float) -> dict[str, object]:
    found = {"gmacs": gmacs, "agreement": agreement, "top1": None, "images": 12, "tokens_per_layer": [26, 20]}
    return {**found, "mean_tokens": 23.0}


def trial(number: int, gmacs: float, agreement: float, origin: str | None = None) -> Trial:
    return Trial(number, Schedule({"merge": (26, number + 1)}), columns(gmacs, agreement), origin)


TRIALS = [trial(0, 1, 70, "own law at 40%"), trial(1, 1, 80), trial(2, 2, 90), trial(3, 2.5, 85), trial(4, 4.5, 99)]
FRONT = Front(SPEC, TRIALS, columns(4, 100))


def test_the_front_holds_what_neither_a_trial_nor_the_unpatched_model_beats():
    assert [t.number for t in FRONT.best] == [1, 2]
    assert [t.number for t in FRONT.shown] == [0, 1, 2], "the plot shows where the search started, too"


def test_of_equals_the_first_is_taken():
    assert [t.number for t in Front(SPEC, [trial(0, 1, 70, "law"), trial(1, 1, 70)], columns(4, 100)).best] == [0]


def test_every_schedule_of_the_front_is_a_file_that_loads(tmp_path: Path):
    files = write_front(FRONT, tmp_path, num_tokens=26)
    assert [path.name for path in files] == ["tome-trial-0001.yaml", "tome-trial-0002.yaml"]
    schedule = Schedule.load(files[0])
    assert schedule == TRIALS[1].schedule
    assert (schedule.name, schedule.model, schedule.num_tokens) == ("tome-trial-0001", "m", 26)
    assert schedule.source == "tokred learn search, trial 1: agreement 80.00 at gmacs 1 on 12 images of d"


def test_the_record_holds_every_trial_and_the_plot_the_front(tmp_path: Path):
    write_front(FRONT, tmp_path, num_tokens=26)
    record = json.loads((tmp_path / "search.json").read_text())
    assert [entry["trial"] for entry in record["trials"]] == [0, 1, 2, 3, 4]
    assert [entry["file"] for entry in record["front"]] == [f"front/{file_name(SPEC, t)}" for t in FRONT.best]
    assert record["search"]["method"] == "tome"
    assert Image.open(tmp_path / "pareto.png").size[0] > 800
    page = (tmp_path / "pareto.html").read_text()
    assert '<script src="http' not in page
    for shown in ("tokred learn search", "tome, searched", "tome, own law", "own law at 40%", "unpatched"):
        assert shown in page


def test_what_has_been_beaten_since_leaves_the_folder_and_nothing_else_does(tmp_path: Path):
    write_front(FRONT, tmp_path, num_tokens=26)
    (tmp_path / "front" / "mine.yaml").write_text("tracks: {merge: [1]}")
    write_front(Front(SPEC, [*TRIALS, trial(5, 0.5, 95)], columns(4, 100)), tmp_path, num_tokens=26)
    assert sorted(p.name for p in (tmp_path / "front").iterdir()) == ["mine.yaml", "tome-trial-0005.yaml"]


def test_a_search_that_found_nothing_better_than_no_reduction_writes_no_schedule(tmp_path: Path):
    assert write_front(Front(SPEC, [trial(0, 5, 90)], columns(4, 100)), tmp_path, num_tokens=26) == []
    assert (tmp_path / "pareto.png").is_file()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "front").write_text("in the way")
    with pytest.raises(StorageError, match="the front cannot be written"):
        write_front(FRONT, tmp_path, num_tokens=26)
