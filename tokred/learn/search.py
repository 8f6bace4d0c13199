"""Search for schedules: choose, measure, keep, until enough has been tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from tokred.bench.machine import require_device, threads
from tokred.errors import BudgetError, ConfigError
from tokred.extra import need
from tokred.learn.choice import Choice, from_record
from tokred.learn.front import Front, Trial, write_front
from tokred.learn.journal import SAMPLERS, Claim, Journal, Seed
from tokred.learn.objective import Objective
from tokred.learn.quiet import quiet
from tokred.learn.space import Range, Space, make_space, written
from tokred.learn.spec import AnySpec, SearchSpec
from tokred.schedule import Schedule
from tokred.sweep.kinds import require_names
from tokred.sweep.subject import Subject

_SEEDS = 5  # budgets at which the method's own law is tried first


class Measures(Protocol):
    """Tells what a choice reaches, and the model without any."""

    def unpatched(self) -> dict[str, Any]:
        """The columns of the unpatched model."""
        ...

    def __call__(self, schedule: Any, report: Callable[[float], None] = ...) -> dict[str, Any]:
        """The columns of a choice; ``report`` is told the share that is done."""
        ...


class Chooses(Protocol):
    """Turns the numbers that a sampler draws into what is measured."""

    @property
    def ranges(self) -> Mapping[str, Range]:
        """The numbers, by name."""
        ...

    def schedule(self, numbers: Mapping[str, float]) -> Choice:
        """The choice; raises BudgetError where the numbers cannot meet their budget."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a search stands, given to ``report`` again and again.

    Attributes:
        tried: trials that are done, by all processes.
        total: trials that are wanted.
        share: how much of the present one is done.
        front: what has been found.
    """

    tried: int
    total: int
    share: float
    front: Front


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        front: the schedules that no other beats, and all others.
        files: one schedule file for each of ``front.best``.
        tried: trials that were done by all processes, those whose form could not meet its budget among them.
    """

    front: Front
    files: list[Path]
    tried: int


def run_search(
    spec: SearchSpec,
    folder: str | Path,
    *,
    trials: int = 100,
    sampler: str = "nsga2",
    workers: int = 0,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Search until ``trials`` schedules have been tried in ``folder``, by this process and by others that share it.

    The first ones are those of the method's own law at several budgets, so that the front is never worse than it. An
    interruption (Ctrl-C) passes through; the front of what was finished is in ``folder`` by then, and the same call
    goes on.

    Args:
        spec: what to search for.
        folder: of the search; a process that names the same one joins, or resumes.
        trials: how many schedules in all.
        sampler: "nsga2", "tpe" or "random".
        workers: processes that read images.
        report: told how it goes.

    Raises:
        BudgetError: a budget cannot be met; the message names the nearest that can.
        ConfigError: the folder holds another search, or a setting is unknown.
        DataError: there is no such model or data set.
        StorageError: the folder cannot be written, or a running process does not release its lock.
        TokredError: Optuna is not installed.
    """
    check_request(trials, sampler, spec.device)
    require_names([spec.model], [spec.data], spec.split)
    with threads(spec.threads), quiet():
        subject = Subject.load(spec.model, spec.data, spec.settings, workers)
        space = make_space(spec.space, spec.build(), subject.tower.shape, spec.budget_low, spec.budget_high)
        return explore(
            spec, folder, space, Objective(subject, spec), seeds_of(space),
            trials=trials, sampler=sampler, report=report, num_tokens=subject.tower.shape.num_tokens,
        )  # fmt: skip


def check_request(trials: int, sampler: str, device: str) -> None:
    """Refuse what no search can do, before anything is loaded.

    Raises:
        ConfigError: no trials, an unknown sampler, or no such device.
        TokredError: Optuna is not installed.
    """
    if trials < 1:
        raise ConfigError(f"trials {trials}: at least 1 is needed.")
    if sampler not in SAMPLERS:
        near = get_close_matches(sampler, SAMPLERS, n=1, cutoff=0)[0]
        raise ConfigError(f"No sampler {sampler!r}; did you mean {near!r}? There are: {', '.join(SAMPLERS)}.")
    need("optuna")
    require_device(device)


def explore(
    spec: AnySpec,
    folder: str | Path,
    space: Chooses,
    objective: Measures,
    seeds: Sequence[Seed],
    *,
    trials: int,
    sampler: str,
    report: Callable[[Progress], None],
    num_tokens: int | None = None,
) -> Outcome:
    """Choose, measure and keep until ``trials`` are tried in ``folder``, whatever is searched for.

    Args:
        spec: what the search is about.
        folder: of the search.
        space: from numbers to choices.
        objective: from choices to results.
        seeds: what is tried first.
        trials: how many choices in all.
        sampler: "nsga2", "tpe" or "random".
        report: told how it goes.
        num_tokens: tokens that enter the first block, where schedules are searched.
    """
    journal = Journal(folder, spec.identity, spec.axes, seeds)
    if journal.unpatched is None or journal.tried < trials:
        journal.tell_unpatched(objective.unpatched())
    try:
        while (claim := journal.claim(trials, space.ranges, sampler, spec.seed)) is not None:
            _measure(claim, space, objective, journal, _Reporter(journal, spec, trials, report))
    except BaseException:  # Ctrl-C among them: what is there is kept
        _leave(journal, spec, num_tokens)
        raise
    return _leave(journal, spec, num_tokens)


def seeds_of(space: Space) -> list[Seed]:
    """The method's own law at budgets from the lowest to the highest; those that it cannot meet are left out."""
    method, shape, seeds = space.method, space.shape, []
    for budget in space.budgets(_SEEDS):
        try:
            law = Schedule.solve(
                budget,
                lambda strength: method.with_(schedule=method.at(shape, strength)).plan(shape),
                lambda schedule: method.cost(shape, schedule),
            )
        except BudgetError:
            continue
        seeds.append(Seed(f"own law at {written(budget)}", law, space.numbers(law, budget.amount)))
    return seeds


def front_of(journal: Journal, spec: AnySpec) -> Front:
    """What a journal holds."""
    found = []
    for trial in journal.finished:
        choice = from_record(trial.user_attrs)
        assert choice is not None, "finish keeps it"
        found.append(Trial(trial.number, choice, trial.user_attrs["columns"], trial.user_attrs.get("origin")))
    return Front(spec, found, journal.unpatched or {})


class _Reporter:
    """Tells how far a trial is, with the front before it."""

    def __init__(self, journal: Journal, spec: AnySpec, total: int, report: Callable[[Progress], None]) -> None:
        self._front, self._tried = front_of(journal, spec), journal.tried
        self._total, self._report = total, report
        self(0.0)

    def __call__(self, share: float) -> None:
        self._report(Progress(self._tried, self._total, share, self._front))


def _measure(
    claim: Claim, space: Chooses, objective: Measures, journal: Journal, report: Callable[[float], None]
) -> None:
    try:
        try:
            schedule = claim.schedule or space.schedule(claim.numbers)
        except BudgetError:
            journal.pass_over(claim)
            return
        journal.finish(claim, schedule, journal.measured(schedule) or objective(schedule, report))
    except BaseException:
        journal.give_up(claim)
        raise


def _leave(journal: Journal, spec: AnySpec, num_tokens: int | None) -> Outcome:
    with journal.turn:  # so that an older front never comes after a newer one
        front = front_of(journal, spec)
        files = write_front(front, journal.folder, num_tokens)
    return Outcome(front, files, journal.tried)
