"""The study of one folder: Optuna's journal, shared by every process that joins, surviving those that die."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tokred.errors import ConfigError, DataError
from tokred.extra import need
from tokred.learn.choice import Choice, from_record, to_record
from tokred.learn.lock import Lock
from tokred.learn.process import is_alive, me
from tokred.learn.space import Range
from tokred.sweep.axes import Axis
from tokred.sweep.store import StorageError

log = logging.getLogger(__name__)

SAMPLERS = ("nsga2", "tpe", "random")
_STUDY = "tokred"
# how much the unpatched model may differ: another machine may see an image differently
_SLACK = {"images": 0, "gmacs": 0, "top1": 1.0, "exact_match": 1.0}
_FORGOTTEN = timedelta(hours=1)  # no trial takes so long; for processes that this machine cannot look at


@dataclass(frozen=True)
class Seed:
    """What is tried before the search chooses by itself.

    Attributes:
        origin: where it is from, such as "own law at 60%".
        schedule: the schedule itself, or the knobs.
        numbers: those of the search space that come closest, for the sampler to learn from.
    """

    origin: str
    schedule: Choice
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Claim:
    """A trial that this process has to measure; without ``schedule``, its ``numbers`` have to be turned into one."""

    trial: Any
    numbers: dict[str, float]
    schedule: Choice | None


class Journal:
    """What was tried, and what will be.

    A trial is claimed under a lock. Whoever claims one first fails the trials of dead processes, so that they count as
    never begun; seeds among them are queued again.

    Args:
        folder: of the search.
        identity: what the search is about; a study about something else is refused.
        axes: cost and quality.
        seeds: what is tried first.

    Raises:
        ConfigError: the folder holds another search; the message names the difference.
        StorageError: the journal cannot be read or written.
        TokredError: Optuna is not installed.
    """

    def __init__(
        self, folder: str | Path, identity: Mapping[str, Any], axes: tuple[Axis, Axis], seeds: Sequence[Seed] = ()
    ) -> None:
        self._optuna = need("optuna")
        self.folder, self.axes, self.seeds = Path(folder), axes, list(seeds)
        self.path = self.folder / "journal.log"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be made ({error.strerror}).") from error
        self.turn = Lock(self.folder / "turn.lock")
        with self.turn, _writing(self.path):
            self._study = self._open(dict(identity))

    @property
    def trials(self) -> list[Any]:
        """All trials, as Optuna keeps them."""
        return self._study.get_trials(deepcopy=False)

    @property
    def finished(self) -> list[Any]:
        """Those with a result."""
        return [trial for trial in self.trials if trial.state.name == "COMPLETE"]

    @property
    def tried(self) -> int:
        """Trials that count: with a result, or whose form could not meet its budget."""
        return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in self.trials)

    @property
    def unpatched(self) -> dict[str, Any] | None:
        """What the unpatched model reaches, once a process has told."""
        return self._study.user_attrs.get("unpatched")

    def tell_unpatched(self, columns: Mapping[str, Any]) -> None:
        """Keep what the unpatched model reaches.

        Raises:
            DataError: an earlier process found something else.
        """
        with self.turn, _writing(self.path):
            before = self.unpatched
            if before is None:
                self._study.set_user_attr("unpatched", dict(columns))
                return
        for name in [name for name in _SLACK if name in before and name in columns]:
            if abs((before[name] or 0) - (columns[name] or 0)) > _SLACK[name]:
                raise DataError(
                    f"The unpatched model has {name} = {columns[name]} here, but {before[name]} when the search in "
                    f"{self.folder} began: images or weights have changed. Search in another folder."
                )

    def claim(self, total: int, ranges: Mapping[str, Range], sampler: str, seed: int) -> Claim | None:
        """Choose what to try next; ``None`` if ``total`` trials are tried or being measured.

        What is chosen depends on the seed and on the trials before, not on how many processes or interruptions there
        were.
        """
        with self.turn, _writing(self.path):
            self._bury()
            self._queue_seeds()
            busy = sum(trial.state.name == "RUNNING" for trial in self.trials)
            if self.tried + busy >= total:
                return None
            self._study.sampler = self._sampler(sampler, (seed * 1_000_003 + len(self.trials)) % 2**32, total)
            trial = self._study.ask()
            trial.set_user_attr("owner", me())
            numbers = {name: trial.suggest_float(name, r.low, r.high, log=r.log) for name, r in ranges.items()}
        return Claim(trial, numbers, from_record(trial.user_attrs))

    def finish(self, claim: Claim, schedule: Choice, columns: Mapping[str, Any]) -> None:
        """Keep a result."""
        with _writing(self.path):
            for name, value in to_record(schedule).items():
                claim.trial.set_user_attr(name, value)
            claim.trial.set_user_attr("columns", dict(columns))
            self._study.tell(claim.trial, [columns[axis.column] for axis in self.axes])

    def give_up(self, claim: Claim) -> None:
        """A trial that was begun and not finished; it does not count, and a seed waits for its turn again."""
        self._study.tell(claim.trial, state=self._optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def pass_over(self, claim: Claim) -> None:
        """A form that cannot meet its budget; it counts."""
        self._study.tell(claim.trial, state=self._optuna.trial.TrialState.PRUNED)

    def measured(self, schedule: Choice) -> dict[str, Any] | None:
        """The result of the same schedule in an earlier trial."""
        record = to_record(schedule)
        same = (t for t in self.finished if all(t.user_attrs.get(name) == v for name, v in record.items()))
        return next((t.user_attrs["columns"] for t in same), None)

    def _open(self, identity: dict[str, Any]) -> Any:
        journal = need("optuna.storages.journal")
        lock = Lock(f"{self.path}.lock")
        try:
            with lock:
                _mend(self.path)
            storage = journal.JournalStorage(journal.JournalFileBackend(str(self.path), lock_obj=lock))
            names = self._optuna.get_all_study_names(storage)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{self.path} is no journal of a search, or is damaged. Use another folder.") from error
        if _STUDY in names:
            study = self._optuna.load_study(study_name=_STUDY, storage=storage)
        else:
            directions = ["maximize" if axis.more_is_better else "minimize" for axis in self.axes]
            study = self._optuna.create_study(study_name=_STUDY, storage=storage, directions=directions)
        known = study.user_attrs.get("search")
        if known is None:
            study.set_user_attr("search", identity)
        else:
            self._require_same(known, identity)
        return study

    def _require_same(self, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        differing = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
        if differing:
            there = ", ".join(f"{name} {known.get(name)!r}" for name in differing)
            asked = ", ".join(f"{name} {wanted.get(name)!r}" for name in differing)
            raise ConfigError(
                f"{self.folder} holds a search with {there}; this one has {asked}. "
                "Use another folder, or the same settings to go on with it."
            )

    def _bury(self) -> None:
        """Fail what dead processes began, so that it neither counts nor is waited for."""
        for trial in self.trials:
            if trial.state.name == "RUNNING" and _is_abandoned(trial):
                self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
                log.warning("Trial %d was begun by a process that has died; it does not count.", trial.number)

    def _queue_seeds(self) -> None:
        there = {t.user_attrs.get("origin") for t in self.trials if t.state.name != "FAIL"}
        for seed in self.seeds:
            if seed.origin not in there:
                attributes = {"origin": seed.origin, **to_record(seed.schedule)}
                self._study.enqueue_trial(dict(seed.numbers), user_attrs=attributes)

    def _sampler(self, name: str, seed: int, total: int) -> Any:
        samplers = self._optuna.samplers
        if name == "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=min(max(total // 5, 8), 50))
        return samplers.TPESampler(seed=seed) if name == "tpe" else samplers.RandomSampler(seed=seed)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say what a failing disk means."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror}). The trials finished before are safe."
        ) from error


def _is_abandoned(trial: Any) -> bool:
    owner = trial.user_attrs.get("owner")
    if owner is None:
        return True  # seen under the lock: it died before it said whose it was
    alive = is_alive(owner)
    began = trial.datetime_start
    return not alive if alive is not None else datetime.now(began.tzinfo) - began > _FORGOTTEN


def _mend(path: Path) -> None:
    """Cut off the last line of a journal if a process died while it wrote it; later lines would be glued to it."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return
    try:
        json.loads(content[whole:])
    except ValueError:
        os.truncate(path, whole)
        log.warning("%s: the last line was cut off when a process died; it has been removed.", path)
    else:
        with open(path, "ab") as file:
            file.write(b"\n")
