"""The classification task and the command, on pictures that a few steps suffice to tell apart."""

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from tokred.assets import ModelConfig, build_model, load_model
from tokred.cli.train import train
from tokred.data.tensors import TensorImages
from tokred.errors import ConfigError
from tokred.train import classification
from tokred.train.classification import ClassificationTask, PatchPool
from tokred.train.config import TrainSpec
from tokred.train.loop import train_model

RECIPE = {
    "name": "tiny",
    "task": {
        "kind": "classification",
        "data": "halves",
        "holdout": 32,
        "crop_padding": 0,
        "flip": False,
        "fused_attention": False,
        "model": {
            "architecture": "vision_transformer",
            "args": {
                "img_size": 8,
                "patch_size": 2,
                "in_chans": 1,
                "num_classes": 2,
                "embed_dim": 16,
                "depth": 1,
                "num_heads": 2,
            },
            "conv_stem": {"channels": [8, 16], "strides": [2, 1]},
            "mean": [0.5],
            "std": [0.5],
        },
    },
    "loop": {
        "stages": [
            {"epochs": 1, "settings": {"stem_only": True}},
            {"epochs": 4, "restart": True, "settings": {"patch_pool": 2}},
            {"epochs": 1},
        ],
        "batch_size": 16,
        "learning_rate": 0.01,
        "ema_decay": 0.8,
        "evaluate_every": 1,
    },
}


def halves(name, split, transform=None):
    """Bright above is class 0, bright below is class 1."""
    generator = torch.Generator().manual_seed(len(split))
    labels = torch.randint(2, (160,), generator=generator)
    images = torch.randint(0, 60, (160, 1, 8, 8), generator=generator)
    images[labels == 0, :, :4] += 150
    images[labels == 1, :, 4:] += 150
    return TensorImages(images.to(torch.uint8), labels, ("above", "below"), transform)


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch):
    monkeypatch.setattr(classification, "load_dataset", halves)


def test_the_exported_file_names_the_test_pictures(tmp_path):
    spec = TrainSpec.model_validate(RECIPE)
    task = ClassificationTask(spec.task, spec.loop.seed)
    model = train_model(task, spec.loop, tmp_path)
    measured = task.export(model, tmp_path / "model")
    assert measured["test_top1"] > 95
    loaded = load_model(tmp_path / "model")
    assert not loaded.training
    weight, half = model.head.weight, loaded.head.weight
    assert torch.equal(weight.half().float(), half)


def test_held_out_pictures_are_not_trained_on():
    spec = TrainSpec.model_validate(RECIPE)
    task = ClassificationTask(spec.task, 0)
    assert task.examples == 128
    assert len(task.held) == 32
    trained = {image.numpy().tobytes() for image in task.images}
    assert not any(image.numpy().tobytes() in trained for image in task.held.images)


def test_an_unknown_stage_setting_is_named():
    task = ClassificationTask(TrainSpec.model_validate(RECIPE).task, 0)
    with pytest.raises(ConfigError, match="patchpool"):
        task.begin_stage({"patchpool": 2})


def test_the_command_trains_measures_and_resumes(tmp_path):
    app = typer.Typer()
    app.command()(train)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    arguments = [str(recipe), "--output", str(tmp_path / "run")]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert "test_top1" in first.output
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    again = CliRunner().invoke(app, [*arguments, "--resume"])
    assert again.exit_code == 0, again.output


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(tmp_path, monkeypatch):
    calls = []
    loss = ClassificationTask.loss

    def interrupted(self, batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(ClassificationTask, "loss", interrupted)
    app = typer.Typer()
    app.command()(train)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    result = CliRunner().invoke(app, [str(recipe), "--output", str(tmp_path / "run")])
    assert result.exit_code == 130
    assert "--resume" in result.output
    assert (tmp_path / "run" / "state.json").is_file()


@pytest.mark.parametrize("architecture", ["vision_transformer", "eva"])
def test_pooled_patches_shorten_training_and_leave_evaluation_alone(architecture):
    args = RECIPE["task"]["model"]["args"] | ({"use_rot_pos_emb": True} if architecture == "eva" else {})
    config = ModelConfig(architecture=architecture, args=args, mean=(0.5,), std=(0.5,))
    torch.manual_seed(0)
    model = build_model(config)
    images = torch.rand(2, 1, 8, 8)
    expected = model.eval()(images)
    pool = PatchPool(model)
    model.patch_drop = pool
    pool.factor = 2
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert torch.equal(model.eval()(images), expected)
    model.train()(images)
    full, pooled = seen
    assert pooled.shape[1] == model.num_prefix_tokens + 4
    first = full[:, model.num_prefix_tokens :].view(2, 4, 4, -1)[:, :2, :2].mean((1, 2))
    assert torch.allclose(pooled[:, model.num_prefix_tokens], first, atol=1e-6)


def test_a_pool_that_does_not_divide_the_grid_is_refused():
    task = ClassificationTask(TrainSpec.model_validate(RECIPE).task, 0)
    with pytest.raises(ConfigError, match="does not divide"):
        task.begin_stage({"patch_pool": 3})
