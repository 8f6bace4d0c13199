"""``tokred validate`` and ``tokred benchmark`` take the command lines of timm's scripts and give back what they do."""

import csv
import importlib
import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.cli.test_main import run
from tests.sweep.test_run import spec_of
from tokred.sweep import run_sweep

KEYS = ["model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation"]
SPEED = ["model", "infer_samples_per_sec", "infer_step_time", "infer_batch_size", "infer_img_size", "infer_gmacs"]
SMALL = ["--model-kwargs", "embed_dim=24", "depth=2", "num_heads=2", "--img-size", "32", "--num-classes", "3"]


def results(out: str) -> dict[str, Any]:
    """What stands behind the mark that timm's own callers look for."""
    mark, _, content = out.partition("\n")
    assert mark == "--result"
    return json.loads(content)


@pytest.fixture
def validation(pictures: str, tmp_path: Path) -> str:
    shutil.move(pictures, tmp_path / "set" / "val")
    return str(tmp_path / "set")


def test_it_validates_as_a_sweep_does_with_a_method_and_without(
    capsys, tiny_model: str, validation: str, tmp_path: Path
):
    spec = spec_of(tiny_model, validation, {"method": "tome", "r": 4}, split="val")
    rows = run_sweep(spec, tmp_path / "out")
    for row, more in zip(rows, ([], ["--method", "tome", "--r", "4"]), strict=True):
        line = [validation, "--model", tiny_model, "-b", "4", "-j", "0", *more]
        code, out, err = run(capsys, "validate", *line, "--log-freq", "3")
        found = results(out)
        assert (code, err) == (0, "batch 3 of 3\n")
        assert list(found)[: len(KEYS)] == KEYS
        assert (found["top1"], found["top5"]) == (pytest.approx(row["top1"], abs=1e-4), 100.0)
        assert found["top1_err"] == pytest.approx(100 - found["top1"])
        assert (found["img_size"], found["crop_pct"]) == (20, 1.0)
        assert found.get("method") == (" ".join(["tome", "r=4"]) if more else None)


def test_every_image_that_cannot_be_read_is_counted(capsys, tiny_model: str, validation: str):
    (Path(validation) / "val" / "a" / "0.png").write_bytes(b"")
    _, out, err = run(capsys, "validate", "--data-dir", validation, "-m", tiny_model, "-j", "0")
    assert results(out)["skipped"] == 1
    assert "0.png" in err


def test_a_timm_model_with_a_checkpoint_sizes_and_a_class_map(capsys, validation: str, tmp_path: Path):
    model = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=2, img_size=32, num_classes=3
    ).eval()
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([0.0, 100.0, 0.0]))  # whatever it sees, it says the second class
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "map.txt").write_text("b\nc\na\n")
    line = ["validate", validation, "--checkpoint", str(tmp_path / "weights.pth"), "-m", "vit_tiny_patch16_224"]
    line += ["--model-kwargs", "embed_dim=24", "depth=2", "num_heads=2", "img_size=32", "--num-classes", "3"]
    line += ["--input-size", "3", "32", "32", "--crop-pct", "0.8", "--mean", "0.5", "--std", "0.5", "-j", "0"]
    line += ["--interpolation", "bilinear", "--class-map", str(tmp_path / "map.txt"), "--amp", "--channels-last"]
    _, out, _ = run(capsys, *line, "--amp-dtype", "bfloat16", "--results-file", str(tmp_path / "found.csv"))
    found = results(out)
    assert found["top1"] == pytest.approx(100 / 3, abs=1e-3)
    assert (found["img_size"], found["crop_pct"], found["interpolation"]) == (32, 0.8, "bilinear")
    with open(tmp_path / "found.csv", newline="") as file:
        assert [{key: str(value) for key, value in found.items()}] == list(csv.DictReader(file))


def test_the_embedded_model_is_named_with_its_data(capsys, monkeypatch: pytest.MonkeyPatch):
    from tokred.sweep import subject

    line = ["validate", "--dataset", "fashion-mnist-sample", "-m", "vit-fmnist", "-j", "0", "-b", "250"]
    whole = subject.Batches.__iter__
    monkeypatch.setattr(subject.Batches, "__iter__", lambda self: islice(whole(self), 1))
    _, out, _ = run(capsys, *line, "--method", "topk", "--keep", "0.9")
    assert results(out)["top1"] > 80


def test_it_measures_speed_with_a_method_and_without(capsys, tmp_path: Path):
    line = ["benchmark", "-m", "vit_tiny_patch16_224", *SMALL, "-b", "2", "--num-warm-iter", "1"]
    line += ["--num-bench-iter", "3", "--precision", "bfloat16"]
    file = tmp_path / "found.json"
    _, out, _ = run(capsys, *line, "--results-file", str(file), "--results-format", "json")
    plain = results(out)
    assert list(plain) == [*SPEED, "param_count"]
    assert (plain["infer_batch_size"], plain["infer_img_size"]) == (2, 32)
    assert json.loads(file.read_text()) == plain
    _, out, _ = run(capsys, *line, "--method", "tome", "--r", "2")
    patched = results(out)
    assert patched["speedup_low"] <= patched["speedup"] <= patched["speedup_high"]
    assert patched["infer_gmacs"] <= plain["infer_gmacs"]


def test_models_that_nothing_can_be_patched_into_are_measured_without_macs(capsys):
    line = ["benchmark", "-m", "resnet18", "-b", "1", "--img-size", "32", "--num-bench-iter", "1"]
    _, out, _ = run(capsys, *line, "--num-warm-iter", "0")
    assert list(results(out)) == [*SPEED[:-1], "param_count"]


def test_a_batch_that_does_not_fit_is_named(capsys, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(importlib.import_module("tokred.cli.benchmark"), "repeat", full)
    code, _, err = run(capsys, "benchmark", "-m", "vit_tiny_patch16_224", *SMALL)
    assert code == 2
    assert "Batches of 256 do not fit into memory. Try -b 128" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["validate", "x", "--torchscript"], "--torchscript of timm's script is not taken. Use --torchcompile"),
        (["validate", "x", "--num-gpu", "4"], "tokred sweep --engine ray"),
        (["validate", "x", "--modle", "y"], "no argument '--modle'; did you mean --model?"),
        (["validate", "x", "-b", "none"], "argument --batch-size/-b: invalid"),
        (["validate", "x", "-b", "0"], "argument --batch-size/-b: invalid"),
        (["validate", "-m", "vit-fmnist"], "name the data"),
        (["validate", "x", "-m", "vit-fmnist", "--r", "8"], "name it with --method"),
        (["validate", "x", "-m", "vit-fmnist", "--method", "tomee"], "tome"),
        (["validate", "x", "-m", "vit-fmnist", "--num-classes", "3"], "it takes no num_classes"),
        (["validate", "x", "-m", "vit_tiny_patch16_224", "--model-kwargs", "deep=3"], "cannot be built with"),
        (["validate", "--dataset", "tfds/cifar10", "-m", "vit-fmnist"], "there are imagefolder, wds, hfds/OWNER/NAME"),
        (["validate", "--dataset", "fashion-mnist-sample", "-m", "clip"], "no model that ships with tokred"),
        (["benchmark", "--bench", "train"], "only inference is measured"),
        (["benchmark", "--model-list", "all"], "one model a run"),
    ],
)
def test_what_is_not_taken_is_refused_by_name_with_what_to_write_instead(capsys, arguments: list[str], said: str):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_labels_of_other_classes_are_no_accuracy(capsys, tiny_model: str, validation: str):
    shutil.rmtree(Path(validation) / "val" / "a")
    code, _, err = run(capsys, "validate", validation, "-m", tiny_model, "-j", "0")
    assert code == 2
    assert "the data has 2 classes, the model 3" in err


def test_help_lists_the_arguments(capsys):
    code, out, _ = run(capsys, "validate", "--help")
    assert code == 0
    assert {"--crop-pct", "--results-format", "--method"} <= set(out.replace("[", " ").split())
