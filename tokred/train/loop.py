"""The training loop, shared by every model that tokred trains. What is learned is a :class:`Task`."""

import copy
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokred.errors import ConfigError, DataError, NonFiniteError
from tokred.train import parallel
from tokred.train.config import LoopSpec
from tokred.train.records import Records, write_grid

log = logging.getLogger(__name__)


class Task(Protocol):
    """What is learned: a model, its batches, a loss, and a number that says how well it goes.

    A task may also have ``draw(model)``, which returns a grid of pictures [R, P, C, H, W] in [-1, 1]; it is written to
    ``samples/`` at every evaluation.
    """

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def examples(self) -> int:
        """Training examples in one epoch."""
        ...

    def begin_stage(self, settings: dict[str, Any]) -> None:
        """Take the settings of a stage of the recipe."""
        ...

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Any]:
        """Yield one epoch of shuffled batches, the last incomplete one left out; all chance from ``generator``."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of ``self.model`` on a batch."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Measure ``model`` on a part of the training data that it is not trained on."""
        ...

    def export(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Write the finished model and measure the file on the test set."""
        ...


@dataclass(frozen=True)
class Step:
    """Where training stands, given to the ``report`` callback after every step."""

    number: int
    total: int
    epoch: int
    loss: float
    learning_rate: float
    images_per_second: float
    metrics: dict[str, float]


def train_model(
    task: Task,
    spec: LoopSpec,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    report: Callable[[Step], None] | None = None,
) -> nn.Module:
    """Train ``task.model`` and return the running average of its weights, in eval mode.

    AdamW with a linear warm-up and a cosine over the stages. A checkpoint is written to ``folder`` every
    ``spec.checkpoint_every`` seconds, at every evaluation (before each restart and at the end, too), and when the run
    is interrupted; what was measured goes to ``metrics.parquet``. Of the processes that torchrun started, each takes
    its part of every batch, gradients are averaged, and the first one writes.

    Args:
        resume: go on from the checkpoint in ``folder``; without one, start anew.
        report: called after every step.

    Raises:
        ConfigError: ``folder`` holds a checkpoint of another recipe.
        NonFiniteError: the loss became NaN or infinite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    per_epoch = task.examples // spec.batch_size
    if per_epoch == 0:
        raise ConfigError(f"A batch of {spec.batch_size} is more than the {task.examples} training examples.")
    ends = stage_ends(spec, per_epoch)
    state = _State(task.model, spec)
    if resume:
        state.load(folder)
    records = Records(folder, state.step)
    evaluations = int(ends[-1] / per_epoch / spec.evaluate_every)
    evaluate_at = {ends[-1], *(round(k * spec.evaluate_every * per_epoch) for k in range(1, evaluations + 1))}
    evaluate_at.update(end for end, after in zip(ends, spec.stages[1:], strict=False) if after.restart)
    saved_at = started_at = time.monotonic()
    seen = 0
    stage = None
    try:
        while state.step < ends[-1]:
            epoch, skip = divmod(state.step, per_epoch)
            generator = torch.Generator().manual_seed(spec.seed * 100_003 + epoch)
            batches = iter(task.batches(spec.batch_size, generator))
            for _ in range(skip):  # a resumed epoch: the same batches, those already seen passed over
                next(batches)
            for _ in range(skip, per_epoch):
                current = next(i for i, end in enumerate(ends) if state.step < end)
                if current != stage:
                    stage = current
                    task.begin_stage(spec.stages[stage].settings)
                    started_at, seen = time.monotonic(), 0
                batch = next(batches)
                task.model.train()
                rate = learning_rate(spec, state.step, per_epoch)
                loss = state.update(task, batch, rate)
                seen += spec.batch_size
                if state.step in evaluate_at:
                    state.metrics = task.evaluate(state.average)
                    log.info("step %d of %d: %s", state.step, ends[-1], state.metrics)
                    draw = getattr(task, "draw", None)
                    if parallel.is_first():
                        records.add(state.step, epoch, loss, rate, state.metrics)
                        if draw is not None:
                            write_grid(draw(state.average), folder / "samples" / f"{state.step:07d}.png")
                if state.step in evaluate_at or time.monotonic() - saved_at > spec.checkpoint_every:
                    state.save(folder)
                    saved_at = time.monotonic()
                if report is not None:
                    speed = seen / (time.monotonic() - started_at)
                    report(Step(state.step, ends[-1], epoch, loss, rate, speed, dict(state.metrics)))
                if state.step == ends[-1]:
                    break
    except KeyboardInterrupt:
        state.save(folder)
        raise
    return state.average.eval()


def stage_ends(spec: LoopSpec, per_epoch: int) -> list[int]:
    """Return the step at which each stage ends, for epochs of ``per_epoch`` steps."""
    return [
        max(1, round(sum(stage.epochs for stage in spec.stages[: i + 1]) * per_epoch)) for i in range(len(spec.stages))
    ]


def learning_rate(spec: LoopSpec, step: int, per_epoch: int) -> float:
    """Return the rate of a step: a line up, then half a cosine down; anew at every stage that says ``restart``."""
    ends = stage_ends(spec, per_epoch)
    starts = [0, *ends[:-1]]
    restarts = [start for start, stage in zip(starts, spec.stages, strict=True) if stage.restart]
    first = max([0, *(start for start in restarts if start <= step)])
    last = min([ends[-1], *(start for start in restarts if start > step)])
    peak = spec.stages[starts.index(first)].learning_rate or spec.learning_rate
    warmup = min(round(spec.warmup_epochs * per_epoch), last - first)
    step -= first
    if step < warmup:
        return peak * (step + 1) / warmup
    part = (step - warmup) / max(1, last - first - warmup)
    low = spec.final_learning_rate
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * part))


class _State:
    """Everything that a checkpoint holds: weights, their running average, the optimizer, the step."""

    def __init__(self, model: nn.Module, spec: LoopSpec):
        self.model, self.spec = model, spec
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        skip = getattr(model, "no_weight_decay", set)()
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        decayed = [p for name, p in trained if p.ndim > 1 and name not in skip]
        plain = [p for name, p in trained if p.ndim <= 1 or name in skip]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=spec.learning_rate,
        )
        self.step = 0
        self.metrics: dict[str, float] = {}

    def update(self, task: Task, batch: Any, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        device = next(self.model.parameters()).device.type
        # Chance inside the model (dropped patches) depends on the step alone, so that a resumed run is the same run.
        torch.manual_seed(self.spec.seed * 100_003 + self.step + 1_000_000_007 * parallel.rank())
        with torch.autocast(device, torch.bfloat16, enabled=self.spec.bf16):
            loss = task.loss(batch)
        if not torch.isfinite(loss):
            raise NonFiniteError(f"The loss became {loss.item()} at step {self.step}. Try a lower learning rate.")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(self.model)
        if self.spec.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.clip_grad)
        self.optimizer.step()
        self.step += 1
        self._average()
        return loss.item()

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.spec.ema_decay, (1 + self.step) / (10 + self.step))
        for mine, new in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(new, 1 - decay)
            else:
                mine.copy_(new)

    def save(self, folder: Path) -> None:
        """Write the checkpoint; ``state.json`` comes last and names the files: a cut-off write leaves the old one."""
        if not parallel.is_first():
            return
        old = {path for path in folder.glob("*-[0-9]*.*") if path.suffix in (".safetensors", ".pt")}
        files = {"model": f"model-{self.step}.safetensors", "average": f"average-{self.step}.safetensors",
                 "optimizer": f"optimizer-{self.step}.pt"}  # fmt: skip
        for name, model in (("model", self.model), ("average", self.average)):
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / files[name])
        torch.save(self.optimizer.state_dict(), folder / files["optimizer"])
        record = {"step": self.step, "metrics": self.metrics, "files": files, "loop": self.spec.model_dump(mode="json")}
        partial = folder / "state.json.partial"
        partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
        partial.replace(folder / "state.json")
        for path in old - {folder / name for name in files.values()}:
            path.unlink(missing_ok=True)

    def load(self, folder: Path) -> None:
        if not (folder / "state.json").is_file():
            return
        try:
            record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            if record["loop"] != self.spec.model_dump(mode="json"):
                raise ConfigError(
                    f"{folder} holds a checkpoint of another recipe. Choose another folder, or leave out --resume."
                )
            files = record["files"]
            self.model.load_state_dict(load_file(folder / files["model"]))
            self.average.load_state_dict(load_file(folder / files["average"]))
            self.optimizer.load_state_dict(torch.load(folder / files["optimizer"], weights_only=True))
            self.step, self.metrics = record["step"], record["metrics"]
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{folder}: the checkpoint cannot be read ({error}). Start without --resume.") from error
