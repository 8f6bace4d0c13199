"""Search for schedules: choose, measure, keep, until enough has been tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tokred.bench.machine import require_device, threads
from tokred.errors import BudgetError, ConfigError
from tokred.learn.front import Front, Trial, write_front
from tokred.learn.journal import SAMPLERS, Claim, Journal, Seed
from tokred.learn.objective import Objective
from tokred.learn.quiet import quiet
from tokred.learn.space import Space, make_space, written
from tokred.learn.spec import SearchSpec
from tokred.schedule import Schedule
from tokred.sweep.extra import need
from tokred.sweep.subject import Subject, require_names

_SEEDS = 5  # budgets at which the method's own law is tried first


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
    if trials < 1:
        raise ConfigError(f"trials {trials}: at least 1 is needed.")
    if sampler not in SAMPLERS:
        near = get_close_matches(sampler, SAMPLERS, n=1, cutoff=0)[0]
        raise ConfigError(f"No sampler {sampler!r}; did you mean {near!r}? There are: {', '.join(SAMPLERS)}.")
    need("optuna")
    require_device(spec.device)
    require_names([spec.model], [spec.data], spec.split)
    with threads(spec.threads), quiet():
        subject = Subject.load(spec.model, spec.data, spec.settings, workers)
        space = make_space(spec.space, spec.build(), subject.tower.shape, spec.budget_low, spec.budget_high)
        objective = Objective(subject, spec)
        journal = Journal(folder, spec.identity, spec.axes, seeds_of(space))
        if journal.unpatched is None or journal.tried < trials:
            journal.tell_unpatched(objective.unpatched())
        try:
            while (claim := journal.claim(trials, space.ranges, sampler, spec.seed)) is not None:
                _measure(claim, space, objective, journal, _Reporter(journal, spec, trials, report))
        except BaseException:  # Ctrl-C among them: what is there is kept
            _leave(journal, spec, subject)
            raise
        return _leave(journal, spec, subject)


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


def front_of(journal: Journal, spec: SearchSpec) -> Front:
    """What a journal holds."""
    found = [
        Trial(t.number, Schedule(t.user_attrs["tracks"]), t.user_attrs["columns"], t.user_attrs.get("origin"))
        for t in journal.finished
    ]
    return Front(spec, found, journal.unpatched or {})


class _Reporter:
    """Tells how far a trial is, with the front before it."""

    def __init__(self, journal: Journal, spec: SearchSpec, total: int, report: Callable[[Progress], None]) -> None:
        self._front, self._tried = front_of(journal, spec), journal.tried
        self._total, self._report = total, report
        self(0.0)

    def __call__(self, share: float) -> None:
        self._report(Progress(self._tried, self._total, share, self._front))


def _measure(
    claim: Claim, space: Space, objective: Objective, journal: Journal, report: Callable[[float], None]
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


def _leave(journal: Journal, spec: SearchSpec, subject: Subject) -> Outcome:
    with journal.turn:  # so that an older front never comes after a newer one
        front = front_of(journal, spec)
        files = write_front(front, journal.folder, subject.tower.shape.num_tokens)
    return Outcome(front, files, journal.tried)
