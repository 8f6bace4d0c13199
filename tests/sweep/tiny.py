"""A random model of 3 blocks and 25 patches, and a folder of 12 noise pictures: enough for a sweep in a second."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokred.assets import ModelConfig, build_model, save_model
from tokred.sweep import Point, run
from tokred.sweep.kinds import Kind

SHARED = {"batch_size": 4, "rounds": 2, "threads": 1}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    args = {
        "img_size": 20,
        "patch_size": 4,
        "in_chans": 1,
        "num_classes": 3,
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
    }
    config = ModelConfig(architecture="vision_transformer", args=args, mean=(0.5,), std=(0.5,), classes=("a", "b", "c"))
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "qkv.weight" in name or "head.weight" in name:
                value.mul_(40)  # so that it attends to something, and tells images apart
    save_model(model, config, folder)
    return str(folder)


def write_pictures(folder: Path, classes: str = "abc", each: int = 4) -> str:
    noise = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(each):
            Image.fromarray(noise.integers(0, 256, (20, 20), dtype=np.uint8)).save(folder / name / f"{index}.png")
    return str(folder)


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    return write_pictures(tmp_path / "pictures")


def before_each_point(monkeypatch: pytest.MonkeyPatch, look: Callable[[Point], None]) -> None:
    """Have ``look`` see every point that is really measured, just before."""
    kind_of = run.kind_of

    def watched(models: Sequence[str]) -> Kind:
        kind = kind_of(models)

        def measure(point: Point, *rest: Any) -> Any:
            look(point)
            return kind.measure(point, *rest)

        return replace(kind, measure=measure)

    monkeypatch.setattr(run, "kind_of", watched)
