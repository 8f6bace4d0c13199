import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.learn.dead import dead_process
from tokred import Schedule
from tokred.errors import ConfigError, DataError
from tokred.learn.journal import Claim, Journal, Seed
from tokred.learn.space import Range
from tokred.sweep import AXES, StorageError

RANGES = {"budget": Range(0.4, 0.8), "steepness": Range(0.1, 10, log=True)}
SEEDS = [Seed(f"own law at {n}%", Schedule({"merge": (n, n)}), {"budget": n / 100, "steepness": 1.0}) for n in (40, 80)]
AGREEMENT = (AXES["gmacs"], AXES["agreement"])


def journal_of(folder: Path, seeds: list[Seed] = SEEDS, **identity: Any) -> Journal:
    return Journal(folder, {"model": "m", "method": "tome", **identity}, AGREEMENT, seeds)


def claim(journal: Journal, total: int = 100, sampler: str = "random") -> Claim:
    claimed = journal.claim(total, RANGES, sampler, seed=0)
    assert claimed is not None
    return claimed


def finish(journal: Journal, claimed: Claim, tokens: int = 3) -> None:
    schedule = claimed.schedule or Schedule({"merge": (tokens, tokens)})
    journal.finish(claimed, schedule, {"gmacs": claimed.numbers["budget"], "agreement": 50.0})


@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "random"])
def test_the_seeds_come_first_and_then_the_sampler_chooses_within_the_ranges(tmp_path: Path, sampler: str):
    journal = journal_of(tmp_path)
    claims = []
    for _ in range(14):
        claims.append(claim(journal, sampler=sampler))
        finish(journal, claims[-1])
    assert [c.schedule for c in claims[:3]] == [SEEDS[0].schedule, SEEDS[1].schedule, None]
    assert claims[1].numbers == SEEDS[1].numbers
    assert all(r.low <= c.numbers[name] <= r.high for c in claims for name, r in RANGES.items())
    assert len({c.numbers["budget"] for c in claims}) == 14


def test_what_is_chosen_depends_on_the_trials_before_and_not_on_interruptions(tmp_path: Path):
    def choices(folder: Path, *, reopened: bool) -> list[dict[str, float]]:
        journal, found = journal_of(folder), []
        for _ in range(12):
            journal = journal_of(folder) if reopened else journal
            found.append(claim(journal, sampler="nsga2"))
            finish(journal, found[-1])
        return [c.numbers for c in found]

    assert choices(tmp_path / "a", reopened=False) == choices(tmp_path / "b", reopened=True)


def test_processes_that_share_a_journal_never_try_the_same_trial_nor_too_many(tmp_path: Path):
    first, second = journal_of(tmp_path), journal_of(tmp_path)
    claims = [claim(journal, total=5) for journal in (first, second, first, second, first)]
    assert sorted(c.trial.number for c in claims) == [0, 1, 2, 3, 4]
    assert len({c.numbers["budget"] for c in claims}) == 5
    assert second.claim(5, RANGES, "random", seed=0) is None, "five are finished or being measured"


def test_what_a_dead_process_began_is_failed_and_a_seed_among_it_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    journal = journal_of(tmp_path)
    dead, alive = claim(journal, total=3), claim(journal, total=3)
    dead.trial.set_user_attr("owner", dead_process())
    joined = journal_of(tmp_path)
    with caplog.at_level(logging.WARNING):
        again = claim(joined, total=3)
    assert "Trial 0 was begun by a process that has died" in caplog.text
    assert again.schedule == SEEDS[0].schedule
    assert [t.state.name for t in joined.trials] == ["FAIL", "RUNNING", "RUNNING"]
    for c in (again, alive, claim(joined, total=3)):
        finish(joined, c)
    assert joined.tried == 3
    assert joined.claim(3, RANGES, "random", seed=0) is None


def test_a_trial_without_owner_was_begun_by_a_process_that_died_early(tmp_path: Path):
    journal = journal_of(tmp_path, [])
    journal._study.ask()
    claim(journal)
    assert [t.state.name for t in journal.trials] == ["FAIL", "RUNNING"]


def test_a_trial_of_another_machine_is_waited_for_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    journal = journal_of(tmp_path, [])
    claim(journal).trial.set_user_attr("owner", "elsewhere:1:1")
    assert journal.claim(1, RANGES, "random", seed=0) is None
    monkeypatch.setattr("tokred.learn.journal._FORGOTTEN", timedelta(hours=-1))
    assert journal.claim(1, RANGES, "random", seed=0) is not None


def test_a_trial_that_is_given_up_does_not_count_and_one_that_is_passed_over_does(tmp_path: Path):
    journal = journal_of(tmp_path)
    journal.give_up(claim(journal))
    assert journal.tried == 0
    claims = [claim(journal) for _ in range(3)]
    assert {c.schedule for c in claims} == {SEEDS[0].schedule, SEEDS[1].schedule, None}
    journal.pass_over(claims[-1])
    assert journal.tried == 1


def test_the_same_schedule_is_known_again(tmp_path: Path):
    journal = journal_of(tmp_path, [])
    finish(journal, claim(journal), tokens=7)
    found = journal_of(tmp_path, []).measured(Schedule({"merge": (7, 7)}))
    assert found is not None
    assert found["agreement"] == 50.0
    assert journal.measured(Schedule({"merge": (7, 6)})) is None


def test_another_search_in_the_same_folder_is_refused_with_the_difference(tmp_path: Path):
    journal_of(tmp_path)
    with pytest.raises(ConfigError, match="holds a search with method 'tome'; this one has method 'topk'"):
        journal_of(tmp_path, method="topk")


def test_images_that_have_changed_are_noticed(tmp_path: Path):
    told = {"images": 12, "gmacs": 1.0, "top1": None}
    journal_of(tmp_path).tell_unpatched(told)
    joined = journal_of(tmp_path)
    joined.tell_unpatched(told)
    assert joined.unpatched == told
    with pytest.raises(DataError, match="images = 11 here, but 12"):
        joined.tell_unpatched({**told, "images": 11})


def test_a_journal_that_a_dead_process_left_locked_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    finish(before := journal_of(tmp_path), claim(before))
    for name in ("journal.log.lock", "turn.lock"):
        (tmp_path / name).symlink_to(f"{dead_process()}:1")
    journal = journal_of(tmp_path)
    finish(journal, claim(journal))
    assert journal.tried == 2
    assert caplog.text.count("was left behind by process") == 2


def test_a_line_that_was_cut_off_by_a_crash_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    finish(before := journal_of(tmp_path), claim(before))
    with open(before.path, "ab") as file:
        file.write(b'{"op_code": 8, "wor')
    journal = journal_of(tmp_path)
    finish(journal, claim(journal))
    assert "the last line was cut off" in caplog.text
    assert journal_of(tmp_path).tried == 2


def test_a_last_line_that_is_whole_but_for_its_end_is_kept(tmp_path: Path):
    finish(before := journal_of(tmp_path), claim(before))
    before.path.write_bytes(before.path.read_bytes().rstrip(b"\n"))
    assert journal_of(tmp_path).tried == 1


def test_a_file_that_is_no_journal_is_named(tmp_path: Path):
    (tmp_path / "journal.log").write_text("not\na journal\n")
    with pytest.raises(StorageError, match=r"journal\.log is no journal"):
        journal_of(tmp_path)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    journal = journal_of(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        claim(journal)


def test_other_tools_of_optuna_can_read_it(tmp_path: Path):
    finish(journal := journal_of(tmp_path), claim(journal))
    backend = optuna.storages.journal.JournalFileBackend(str(journal.path))
    study = optuna.load_study(study_name="tokred", storage=optuna.storages.JournalStorage(backend))
    assert [d.name for d in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert study.trials[0].values == [0.4, 50.0]
