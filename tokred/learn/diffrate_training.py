"""Learning DiffRate's rates from a name of a model and of images: a folder with a schedule and a card."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset

from tokred.assets import load_model
from tokred.bench.machine import device_name, require_device, threads, versions
from tokred.cost import CONVENTIONS, Convention
from tokred.data import Batches, load_dataset, transform_for
from tokred.data.tensors import augment
from tokred.errors import BudgetError, ConfigError, DataError
from tokred.learn.diffrate import MaskedDiffRate, Rates, diffrate_loss, formula_macs
from tokred.learn.frozen import frozen
from tokred.learn.lock import Lock
from tokred.methods.diffrate import DiffRate
from tokred.patching import patch
from tokred.schedule import Budget, Schedule
from tokred.shape import ModelShape
from tokred.sweep.point import Settings
from tokred.sweep.store import StorageError
from tokred.sweep.subject import Predictions, Subject
from tokred.train.config import LoopSpec, Stage
from tokred.train.loop import Step, train_model

log = logging.getLogger(__name__)

SCHEDULE, CARD = "diffrate.yaml", "diffrate.json"
_PAPER_GMACS = 4.6  # of DeiT-S, for which the paper's weight of the loss was chosen
_STEEPEST = 1e6  # a slope that leaves one candidate
_OFF = 0.02  # of the target, from where on a word is due


@dataclass(frozen=True)
class DiffRateSpec:
    """How rates are learned.

    Attributes:
        model: name of a shipped model, timm name, or folder.
        data: name of a data set, or a folder of class folders.
        target: what the model may cost: "60%", "2.9 GMACs".
        split: which part of the data.
        steps: of the optimizer.
        batch_size: images a step.
        learning_rate: at first; it falls to a tenth along a cosine.
        weight: of the squared distance from the target.
        unit: GMACs in which that distance is measured; 1 in the paper. ``None``: the model has as many units as DeiT-S
            has GMACs, so that the same weight does the same to small and large models.
        clip: largest norm of the gradient of one distribution. A masked token that would draw all attention has an
            enormous one, after which the optimizer, which goes by their size, would stand still for a thousand steps.
        granularity: patches between two counts that can be chosen from.
        start: before training every count is as likely as every other ("even", the paper's), or the expected ones are
            those of ToMe with a constant r for the target ("constant").
        holdout: images that are set aside; all measurements are made on them.
        shift: pixels that images are moved by, at most.
        flip: mirror images at random.
        bf16: run the model in bfloat16 where autocast does, as the paper trains in half precision; not to measure.
        convention: what counts as cost, see :data:`tokred.cost.CONVENTIONS`; "diffrate" is the paper's formula.
        threads: CPU threads; left as they are if ``None``.
        device: where to run.
        seed: draws the images.
    """

    model: str
    data: str
    target: str
    split: str = "train"
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 0.01
    weight: float = 5.0
    unit: float | None = None
    clip: float = 0.005
    granularity: int = 4
    start: str = "even"
    holdout: int = 1000
    shift: int = 0
    flip: bool = True
    bf16: bool = True
    convention: str = "full"
    threads: int | None = None
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "weight", "clip", "granularity", "holdout"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} {getattr(self, name)}: it must be above 0.")
        if self.unit is not None and self.unit <= 0:
            raise ConfigError(f"unit {self.unit}: it must be above 0.")
        if self.start not in ("even", "constant"):
            raise ConfigError(f"start {self.start!r}: known are even, constant.")
        if self.shift < 0:
            raise ConfigError(f"shift {self.shift}: it must not be below 0.")
        if self.convention not in CONVENTIONS:
            raise ConfigError(f"convention {self.convention!r}: known are {', '.join(CONVENTIONS)}.")
        if Budget.parse(self.target).unit == "tokens":
            raise BudgetError(f"target {self.target!r}: DiffRate learns for a cost; write '60%' or '2.9 GMACs'.")

    @property
    def identity(self) -> dict[str, Any]:
        """What must not change when training goes on, as plain data."""
        passing = ("threads", "device")
        return {name: value for name, value in asdict(self).items() if name not in passing}

    def loop(self, examples: int) -> LoopSpec:
        """The same as a recipe of the training loop."""
        epochs = self.steps / max(examples // self.batch_size, 1)
        return LoopSpec(
            stages=(Stage(epochs=epochs, settings=self.identity),),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            final_learning_rate=self.learning_rate / 10,
            warmup_epochs=0.0,
            weight_decay=0.0,
            clip_grad=None,
            ema_decay=0.0,
            bf16=self.bf16,
            seed=self.seed,
            evaluate_every=epochs / 4,
        )


@dataclass(frozen=True)
class LearnedRates:
    """What training left.

    Attributes:
        schedule: what ``tokred.DiffRate(schedule=...)`` takes.
        file: that schedule as a file.
        card: what is known about it; also in a file beside it.
    """

    schedule: Schedule
    file: Path
    card: dict[str, Any]


class Target:
    """A budget of one model, and how far a schedule is from it.

    Raises:
        BudgetError: the model costs no more unreduced, or no rates can reach it.
    """

    def __init__(self, spec: DiffRateSpec, shape: ModelShape) -> None:
        self.shape = shape
        self.convention: Convention = cast("Convention", spec.convention)
        rates = Rates(shape, spec.granularity)
        whole = Schedule(dict.fromkeys(DiffRate.tracks, (shape.num_tokens,) * shape.depth))
        budget, full = Budget.parse(spec.target), DiffRate().cost(shape, whole, self.convention)
        self.full, self.limit = full.macs, budget.limit(full)
        lowest = self.macs(rates.tilted(-_STEEPEST).schedule())
        if self.limit >= self.full:
            raise BudgetError(
                f"target {spec.target!r}: the model costs {full.gmacs:.3f} GMACs without any reduction, so there is "
                "nothing to learn. Give less than 100%."
            )
        if self.limit < lowest:
            raise BudgetError(
                f"target {spec.target!r} is out of reach: rates that keep the fewest tokens in every block but the "
                f"first leave {lowest / 1e9:.3f} GMACs ({100 * lowest / self.full:.1f}%)."
            )

    def macs(self, schedule: Schedule) -> int:
        """What the model costs with a schedule."""
        return DiffRate().cost(self.shape, schedule, self.convention).macs

    def constant(self) -> Schedule:
        """Merging alone, as many tokens in every block but the first, for no more than the target."""
        patches, depth = self.shape.num_patches, self.shape.depth
        for r in (step / 8 for step in range(8 * patches)):
            after = [self.shape.num_prefix + max(1, round(patches - r * layer)) for layer in range(depth)]
            schedule = Schedule({"prune": (self.shape.num_tokens, *after[:-1]), "merge": tuple(after)})
            if self.macs(schedule) <= self.limit:
                return schedule
        raise BudgetError("Merging alone cannot reach the target.")

    def learnable(self, rates: Rates) -> Tensor:
        """The same for the counts in force, with the gradient of the paper's formula."""
        formula = formula_macs(self.shape, rates.kept())
        return formula + (self.macs(rates.schedule()) - formula.detach())

    def meet(self, rates: Rates) -> Rates:
        """The rates nearest to these that cost no more than the target, and hardly less."""
        low, high = -_STEEPEST, _STEEPEST
        for _ in range(60):
            middle = (low + high) / 2
            fits = self.macs(rates.tilted(middle).schedule()) <= self.limit
            low, high = (middle, high) if fits else (low, middle)
        return rates.tilted(low)


class RatesTask:
    """Rates in a frozen, patched model, as the training loop wants them.

    Args:
        spec: how they are learned.
        subject: the model, and the images to watch progress on.
        trained: images to learn from, as the model wants them.
        workers: processes that read images.
    """

    def __init__(self, spec: DiffRateSpec, subject: Subject, trained: Dataset[Any], workers: int = 0) -> None:
        self.spec, self.subject, self.trained, self.workers = spec, subject, trained, workers
        shape = subject.tower.shape
        self.target = Target(spec, shape)
        self.rates = Rates(shape, spec.granularity, self.target.constant() if spec.start == "constant" else None)
        self.rates.to(subject.device)
        self.rates.logits.register_hook(lambda gradient: clipped(gradient, spec.clip))
        self.model: nn.Module = self.rates
        self.network = copy.deepcopy(subject.model)
        self.unit = 1e9 * spec.unit if spec.unit else self.target.full / _PAPER_GMACS
        self.accuracy: float | None = None

    @property
    def examples(self) -> int:
        """Images in one epoch."""
        return len(self.trained)  # type: ignore[arg-type]

    def begin_stage(self, settings: dict[str, Any]) -> None:
        """There is one stage."""

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of shuffled images, moved and mirrored, the last incomplete batch left out."""
        order = torch.randperm(self.examples, generator=generator)
        whole = order[: len(order) // batch_size * batch_size].tolist()
        for images, labels in Batches(Subset(self.trained, whole), batch_size, workers=self.workers):
            dark = images.amin(dim=(0, 2, 3), keepdim=True)  # what comes in at the edges
            moved = augment(images - dark, generator, padding=self.spec.shift, flip=self.spec.flip) + dark
            yield moved.to(self.subject.device), labels.to(self.subject.device)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of the paper."""
        images, labels = batch
        logits = self.network(images).float()
        right = 100 * (logits.argmax(dim=-1) == labels).float().mean().item()
        self.accuracy = right if self.accuracy is None else 0.95 * self.accuracy + 0.05 * right
        macs = self.target.learnable(self.rates)
        return diffrate_loss(F.cross_entropy(logits, labels), macs, self.target.limit, self.spec.weight, self.unit)

    def progress(self) -> dict[str, float]:
        """What the last steps say: accuracy on their images, masked, and the cost of the counts in force."""
        gmacs = self.target.macs(self.rates.schedule()) / 1e9
        return {"gmacs": gmacs} if self.accuracy is None else {"accuracy": self.accuracy, "gmacs": gmacs}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Measure other rates on the images that were set aside, tokens really removed."""
        assert isinstance(model, Rates)
        return {"held_out_top1": self.measure(model.schedule()).top1}

    def export(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Write the schedule, and measure it."""
        assert isinstance(model, Rates)
        model.schedule().save(folder / SCHEDULE)
        return self.evaluate(model)

    def measure(self, schedule: Schedule) -> Predictions:
        """What the model says of the images that were set aside when it really removes tokens."""
        with patch(self.subject.model, DiffRate(schedule=schedule)):
            return self.subject.predict(self.subject.model)


def train_diffrate(
    spec: DiffRateSpec,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    workers: int = 0,
    report: Callable[[Step], None] | None = None,
    say: Callable[[str], None] = lambda stage: None,
) -> LearnedRates:
    """Learn how many tokens DiffRate should prune and merge in every block of one model, for one cost.

    Training keeps all tokens and masks them; every number that is reported is of tokens that are really removed, on
    images of the split that were set aside.

    Args:
        spec: what to learn.
        folder: gets ``diffrate.yaml``, ``diffrate.json`` and, in ``checkpoint``, what an interrupted training needs.
        resume: go on from the checkpoint.
        workers: processes that read images.
        report: called after every step.
        say: called with what happens before and after the steps.

    Raises:
        BudgetError: the target cannot be read or reached.
        ConfigError: labels that are not the model's classes, a model of one block, or a checkpoint of another training.
        DataError: there is no such model or data, or too few images.
        NonFiniteError: the loss became NaN.
        StorageError: the folder cannot be written, or another training runs in it.
    """
    require_device(spec.device)
    folder = Path(folder)
    with threads(spec.threads):
        network = load_model(spec.model)
        images = load_dataset(spec.data, spec.split, transform_for(network))
        trained, held = _split(images, spec)
        settings = Settings(spec.split, None, 250, 0, torch.get_num_threads(), spec.device, "float32", spec.seed)
        subject = Subject(network, Batches(held, settings.batch_size, workers=workers), settings)
        if subject.note is not None:
            raise ConfigError(f"{subject.note}. Rates are learned from labels that are the model's classes.")
        task = RatesTask(spec, subject, trained, workers)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with Lock(folder / "lock", patience=0.0):
                return _train(task, folder, resume, report, say)
        except OSError as error:
            raise StorageError(f"{folder} cannot be written ({error.strerror}).") from error


def clipped(gradient: Tensor, largest: float) -> Tensor:
    """The gradient [.., K] with no row longer than ``largest``.

    >>> clipped(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.30000001192092896, 0.4000000059604645]]
    """
    return gradient * (largest / gradient.norm(dim=-1, keepdim=True).clamp(min=largest))


def finish(rates: Rates, target: Target, spec: DiffRateSpec) -> Schedule:
    """The schedule of learned rates: it costs no more than the target, and names the model that it is for.

    Raises:
        ConfigError: nothing has been learned yet.
    """
    if rates.untrained:
        raise ConfigError("These rates are untrained: nothing has changed since their start. Train them first.")
    schedule = target.meet(rates).schedule()
    gmacs = target.macs(schedule) / 1e9
    return replace(
        schedule,
        name=f"{Path(spec.model).name.replace('-', '_')}_{gmacs:.3g}g",
        source=f"tokred learn diffrate, target {spec.target}, {spec.steps} steps of {spec.batch_size} images of "
        f"{spec.data} ({spec.split})",
        model=Path(spec.model).name,
        fingerprint=target.shape.fingerprint,
    )


def _train(
    task: RatesTask, folder: Path, resume: bool, report: Callable[[Step], None] | None, say: Callable[[str], None]
) -> LearnedRates:
    spec, target, subject = task.spec, task.target, task.subject
    say("Measuring the unpatched model ...")
    unpatched = subject.reference.top1

    def show(step: Step) -> None:
        if report is not None:
            report(replace(step, metrics={**task.progress(), **step.metrics}))

    say("Training ...")
    with frozen(task.network), patch(task.network, MaskedDiffRate(rates=task.rates)):
        learned = train_model(task, spec.loop(task.examples), folder / "checkpoint", resume=resume, report=show)
    assert isinstance(learned, Rates)
    say("Measuring the model with what was learned ...")
    reached, schedule = target.macs(learned.schedule()), finish(learned, target, spec)
    if abs(reached - target.limit) > _OFF * target.limit:
        log.warning(
            "Training ended at %.1f%% of the MACs where %.1f%% were wanted, and the rates were tilted to meet it. More "
            "steps, a higher weight or a higher learning rate bring training itself there.",
            100 * reached / target.full,
            100 * target.limit / target.full,
        )
    result = task.measure(schedule)
    macs = target.macs(schedule)
    card = {
        "method": "diffrate",
        **spec.identity,
        "unit": task.unit / 1e9,
        "limit_gmacs": target.limit / 1e9,
        "trained_gmacs": reached / 1e9,
        "gmacs": macs / 1e9,
        "gmacs_unpatched": target.full / 1e9,
        "share": macs / target.full,
        "tokens_per_layer": list(schedule.tokens(target.shape.num_tokens)),
        "images": len(result.labels),
        "top1_unpatched": unpatched,
        "top1": result.top1,
        "device": device_name(spec.device),
        "versions": versions(),
    }
    schedule.save(folder / SCHEDULE)
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return LearnedRates(schedule, folder / SCHEDULE, card)


def _split(images: Any, spec: DiffRateSpec) -> tuple[Subset[Any], Subset[Any]]:
    """Images to learn from, and images that are set aside."""
    if len(images) < spec.holdout + spec.batch_size:
        raise DataError(
            f"{spec.data} ({spec.split}) has {len(images)} images: too few to set {spec.holdout} of them aside and "
            f"learn from batches of {spec.batch_size}."
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(spec.seed)).tolist()
    return Subset(images, order[spec.holdout :]), Subset(images, sorted(order[: spec.holdout]))
