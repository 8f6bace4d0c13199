"""What the loop promises for any task."""

import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from tokred.errors import ConfigError, DataError, NonFiniteError
from tokred.train.config import LoopSpec, Stage
from tokred.train.loop import Step, learning_rate, stage_ends, train_model


class Line:
    """The smallest task: fit y = 2 x."""

    examples = 32

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, 1))
        self.settings = []
        self.evaluations = 0

    def begin_stage(self, settings):
        self.settings.append(settings)

    def batches(self, batch_size, generator):
        x = torch.randn(self.examples, 1, generator=generator)
        yield from zip(x.split(batch_size), (2 * x).split(batch_size), strict=True)

    def loss(self, batch):
        return (self.model(batch[0]) - batch[1]).float().square().mean()

    def evaluate(self, model):
        self.evaluations += 1
        assert not model.training
        return {"evaluations": float(self.evaluations)}

    def export(self, model, folder):
        return {}


def spec(**changes):
    values = {"stages": (Stage(epochs=3),), "batch_size": 8, "bf16": False, "learning_rate": 0.01} | changes
    return LoopSpec(**values)


def stop_after(count):
    def report(step: Step):
        if step.number == count:
            raise KeyboardInterrupt

    return report


def test_training_lowers_the_loss(tmp_path):
    losses = []
    train_model(Line(), spec(stages=(Stage(epochs=20),)), tmp_path, report=lambda step: losses.append(step.loss))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, stop):
    whole = train_model(Line(), spec(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_model(Line(), spec(), tmp_path / "parts", report=stop_after(stop))
    resumed = train_model(Line(), spec(), tmp_path / "parts", resume=True)
    for ours, theirs in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_finished_run_is_not_trained_further(tmp_path):
    done = train_model(Line(), spec(), tmp_path)
    again = train_model(Line(), spec(), tmp_path, resume=True, report=stop_after(1))
    assert all(torch.equal(a, b) for a, b in zip(done.state_dict().values(), again.state_dict().values(), strict=True))


def test_only_the_last_checkpoint_is_kept(tmp_path):
    train_model(Line(), spec(checkpoint_every=0), tmp_path)
    assert len(list(tmp_path.iterdir())) == 5  # model, average, optimizer, state.json, metrics


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    train_model(Line(), spec(), tmp_path)
    with pytest.raises(ConfigError, match="another recipe"):
        train_model(Line(), spec(learning_rate=0.02), tmp_path, resume=True)


def test_a_damaged_checkpoint_is_named(tmp_path):
    train_model(Line(), spec(), tmp_path)
    record = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / record["files"]["model"]).write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match="checkpoint cannot be read"):
        train_model(Line(), spec(), tmp_path, resume=True)


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    task = Line()
    task.loss = lambda batch: task.model(batch[0]).mean() * float("nan")
    with pytest.raises(NonFiniteError, match="step 0"):
        train_model(task, spec(), tmp_path)


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="32 training examples"):
        train_model(Line(), spec(batch_size=64), tmp_path)


def test_each_stage_gives_its_settings_to_the_task(tmp_path):
    task = Line()
    stages = (Stage(epochs=0.5, settings={"a": 1}), Stage(epochs=1.75, settings={"a": 2}))
    seen = []
    train_model(task, spec(stages=stages), tmp_path, report=lambda step: seen.append(step.number))
    assert task.settings == [{"a": 1}, {"a": 2}]
    assert seen == list(range(1, 10))  # 2.25 epochs of 4 steps


def test_metrics_come_at_every_evaluation_and_at_the_end(tmp_path):
    task = Line()
    train_model(task, spec(stages=(Stage(epochs=2.5),), evaluate_every=1.0), tmp_path)
    assert task.evaluations == 3


def test_the_learning_rate_warms_up_falls_and_restarts():
    stages = (Stage(epochs=2), Stage(epochs=1), Stage(epochs=2, restart=True))
    loop = spec(stages=stages, warmup_epochs=0.5, learning_rate=1.0, final_learning_rate=0.0)
    rates = [learning_rate(loop, step, 10) for step in range(50)]
    assert stage_ends(loop, 10) == [20, 30, 50]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates[:30]) == rates[5] == pytest.approx(1.0)
    assert rates[29] < 0.01 < rates[30] < rates[35] == pytest.approx(1.0)
    assert rates[49] < 0.02
    assert all(a > b for a, b in pairwise(rates[5:30]))
