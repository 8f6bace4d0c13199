"""Several processes learn what one would."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tokred.train import parallel

SCRIPT = """
import sys, torch
from torch import nn
from tokred.train import parallel
from tokred.train.config import LoopSpec, Stage
from tokred.train.loop import train_model

torch.set_num_threads(1)

class Line:
    examples = 32

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1)

    def begin_stage(self, settings):
        pass

    def batches(self, batch_size, generator):
        x = torch.randn(self.examples, 1, generator=generator)
        yield from x[parallel.own_part(torch.arange(32), batch_size)].split(batch_size // parallel.world())

    def loss(self, batch):
        return (self.model(batch) - 2 * batch).float().square().mean()

    def evaluate(self, model):
        return {}

spec = LoopSpec(stages=(Stage(epochs=3),), batch_size=8, bf16=False, learning_rate=0.01, clip_grad=None)
with parallel.joined():
    train_model(Line(), spec, sys.argv[1])
"""


def test_two_processes_learn_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "of1")])
    runpy.run_path(str(script))
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script), str(tmp_path / "of2")]
    running = [subprocess.Popen(command, env={**env, "RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    (one,), (two,) = (list((tmp_path / f"of{world}").glob("average-*.safetensors")) for world in (1, 2))
    for name, value in load_file(one).items():
        torch.testing.assert_close(load_file(two)[name], value)


def test_one_process_takes_everything_and_joins_nobody():
    with parallel.joined():
        assert not torch.distributed.is_initialized()
    assert parallel.own_part(torch.arange(8), 4).tolist() == list(range(8))
    assert (parallel.rank(), parallel.world(), parallel.is_first()) == (0, 1, True)
