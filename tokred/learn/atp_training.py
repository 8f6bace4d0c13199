"""Training the thresholds of ATP from a name of a model and of questions: a folder with the modules and a card."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tokred.adapters.multimodal import find_multimodal
from tokred.bench.machine import device_name, require_device, threads, versions
from tokred.data import VQADataset, load_vqa
from tokred.errors import ConfigError, DataError
from tokred.evaluate.vqa import exact_match
from tokred.learn.atp import FILE, ATPTask, require_layers, save_modules
from tokred.learn.frozen import frozen
from tokred.learn.questions import prompt_sizes, split_pictures
from tokred.learn.quiet import quiet_loading
from tokred.methods import create_method
from tokred.methods.atp import ATP
from tokred.multimodal_assets import load_multimodal
from tokred.patching import patch
from tokred.sweep.store import StorageError
from tokred.train.config import LoopSpec, Stage
from tokred.train.loop import Step, train_model

log = logging.getLogger(__name__)

CARD = "atp.json"
_OFF = 0.15  # of the target, from where on a word is due


@dataclass(frozen=True)
class ATPSpec:
    """How the modules of ATP are trained.

    Attributes:
        model: name of a shipped multimodal model, folder, or id of the hub.
        data: name of a set of questions, or a JSONL file.
        target: visual tokens behind a module, averaged over the modules: "64", or a share such as "25%".
        knobs: of ATP; ``weights`` are where training starts.
        split: which part of the data; ``None``: the training part, or the only one there is.
        steps: of the optimizer.
        batch_size: questions a step.
        learning_rate: at its highest.
        holdout: questions that are set aside with their pictures; all measurements are made on them.
        lambda_atp: weight of the loss's depth term.
        lambda_target: weight of the loss's distance from the target.
        threads: CPU threads; left as they are if ``None``.
        device: where to run.
        seed: draws the questions.
    """

    model: str
    data: str
    target: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 0.01
    holdout: int = 200
    lambda_atp: float = 0.05
    lambda_target: float = 0.2
    threads: int | None = None
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "holdout"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} {getattr(self, name)}: it must be above 0.")
        for name in ("lambda_atp", "lambda_target"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)}: it must not be below 0.")
        self.build()
        self.tokens(1e9)

    def build(self, **more: Any) -> ATP:
        """The method.

        Raises:
            ConfigError: an unknown knob, or a value that it does not take.
        """
        try:
            return create_method("atp", **{**self.knobs, **more})
        except (ValueError, TypeError) as error:
            raise ConfigError(f"atp: {error}") from error

    def tokens(self, visual: float) -> float:
        """The target in tokens, of prompts with so many visual tokens on average.

        Raises:
            ConfigError: it is no number or share, or more than there are.
        """
        text = self.target.strip()
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            raise ConfigError(
                f"target {self.target!r}: write visual tokens, such as 64, or a share, such as 25%."
            ) from None
        found = visual * value / 100 if text.endswith("%") else value
        if not 0 < found <= visual:
            raise ConfigError(
                f"target {self.target!r}: the prompts have {visual:.0f} visual tokens on average; give more than 0 and "
                "at most as many."
            )
        return found

    def loop(self, target: float, examples: int) -> LoopSpec:
        """The same as a recipe of the training loop; what must not change when training goes on is in it."""
        epochs = self.steps / max(examples // self.batch_size, 1)
        recipe = {
            "target": target,
            "lambda_atp": self.lambda_atp,
            "lambda_target": self.lambda_target,
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "holdout": self.holdout,
            "knobs": json.loads(json.dumps(dict(self.knobs), default=str)),
        }
        return LoopSpec(
            stages=(Stage(epochs=epochs, settings=recipe),),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            final_learning_rate=self.learning_rate / 100,
            warmup_epochs=epochs / 20,
            weight_decay=0.0,
            ema_decay=0.9,
            bf16=False,
            seed=self.seed,
            evaluate_every=epochs / 4,
        )


@dataclass(frozen=True)
class Learned:
    """What training left.

    Attributes:
        weights: the file that ``tokred.ATP(weights=...)`` takes.
        card: what is known about it; also in a file beside it.
    """

    weights: Path
    card: dict[str, Any]


def train_atp(
    spec: ATPSpec,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    report: Callable[[Step], None] | None = None,
    say: Callable[[str], None] = lambda stage: None,
) -> Learned:
    """Train the modules of ATP on one model, and measure them on questions that were set aside, tokens really dropped.

    Args:
        spec: what to train.
        folder: gets ``atp.safetensors``, ``atp.json`` and, in ``checkpoint``, what an interrupted training needs.
        resume: go on from the checkpoint.
        report: called after every step.
        say: called with what happens before and after the steps.

    Raises:
        ConfigError: a target above the visual tokens, layers that the model does not have, weights for another width,
            or a checkpoint of another training.
        DataError: there is no such model or data, too few questions, or a question without image.
        NonFiniteError: the loss became NaN.
        StorageError: the folder cannot be written.
    """
    require_device(spec.device)
    folder = Path(folder)
    with threads(spec.threads):
        data, split = _questions(spec)
        with quiet_loading():
            model, processor = load_multimodal(spec.model)
        model.to(torch.device(spec.device))
        return train_modules(spec, model, processor, data, folder, split=split, resume=resume, report=report, say=say)


def train_modules(
    spec: ATPSpec,
    model: Any,
    processor: Any,
    data: VQADataset,
    folder: Path,
    *,
    split: str | None = None,
    resume: bool = False,
    report: Callable[[Step], None] | None = None,
    say: Callable[[str], None] = lambda stage: None,
) -> Learned:
    """The same for a model and questions that are there already; the model is given back as it was."""
    method = spec.build()
    require_layers(method, len(find_multimodal(model).layers))
    trained, held = split_pictures(data, spec.holdout, spec.seed)
    sizes = prompt_sizes(model, processor, held)
    visual = sum(size.visual for size in sizes) / len(sizes)
    target = spec.tokens(visual)
    loop = spec.loop(target, len(trained))
    with frozen(model):
        say("Asking the unpatched model ...")
        before = exact_match(model, processor, held)
        with patch(model, method) as handle:
            task = ATPTask(handle, processor, trained, held)
            say("Training ...")
            try:
                modules = train_model(task, loop, folder / "checkpoint", resume=resume, report=report)
            except OSError as error:
                raise StorageError(f"{folder} cannot be written ({error.strerror}).") from error
            say("Asking the model with what was learned ...")
            reached, layers = task.measure(modules), handle.language.dropping.layers
            kept = task.kept(reached)
    card = {
        "method": "atp",
        "knobs": {**method.describe(), "layers": list(layers), "weights": FILE},
        "model": spec.model,
        "data": spec.data,
        "split": split,
        "target": target,
        "kept": kept,
        "visual_tokens": visual,
        "kept_share": kept / visual,
        "visual_tokens_per_layer": reached.per_layer,
        "questions": before.total,
        "exact_match_unpatched": before.percent,
        "exact_match": reached.answers.percent,
        "steps": spec.steps,
        "batch_size": spec.batch_size,
        "learning_rate": spec.learning_rate,
        "lambda_atp": spec.lambda_atp,
        "lambda_target": spec.lambda_target,
        "seed": spec.seed,
        "device": device_name(spec.device),
        "versions": versions(),
    }
    if abs(kept - target) > _OFF * target:
        log.warning(
            "%.1f visual tokens are left where %.1f were wanted: the soft masks of training meet the target, hard "
            "decisions do not. A higher temperature brings both together; scaling='unit' helps where scores do not "
            "lie between 0 and 1.",
            kept,
            target,
        )
    try:
        save_modules(modules, folder / FILE)
        (folder / CARD).write_text(json.dumps(card, indent=1, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}).") from error
    return Learned(folder / FILE, card)


def _questions(spec: ATPSpec) -> tuple[VQADataset, str]:
    """The questions to train on, and the name of their part."""
    if spec.split is not None:
        return load_vqa(spec.data, spec.split), spec.split
    try:
        return load_vqa(spec.data, "train"), "train"
    except DataError:
        return load_vqa(spec.data, "test"), "test"
