"""The task of captions, on a model that learns for a few steps."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.clip import CONFIG
from tokred.clip_assets import load_clip
from tokred.data.scenes import CLASSES, draw_scenes
from tokred.data.tensors import TensorImages
from tokred.errors import ConfigError
from tokred.train import contrastive
from tokred.train.config import TrainSpec, load_spec
from tokred.train.contrastive import ContrastiveTask
from tokred.train.loop import train_model
from tokred.train.plan import plan
from tokred.train.tasks import build_task

KINDS = [["circle", "square"], ["small", "large"], ["left", "right"], ["red", "green", "blue"]]
RECIPE = {
    "name": "tiny",
    "task": {
        "kind": "contrastive",
        "data": "scenes",
        "holdout": 6,
        "alternatives": KINDS,
        "model": CONFIG.model_dump(),
    },
    "loop": {
        "stages": [{"epochs": 1, "settings": {"most_words": 10, "patches": 9}}, {"epochs": 1}],
        "batch_size": 8,
        "learning_rate": 0.003,
        "ema_decay": 0.5,
        "evaluate_every": 1,
    },
}


@pytest.fixture
def task(monkeypatch):
    few = {"train": draw_scenes(30, seed=0), "test": draw_scenes(12, seed=1)}
    monkeypatch.setattr(contrastive, "load_captions", lambda name, split: few[split])
    labelled = TensorImages(few["test"].images, torch.arange(12) % 3, CLASSES[:3])
    monkeypatch.setattr(contrastive, "load_dataset", lambda name, split: labelled)
    spec = TrainSpec.model_validate(RECIPE)
    return build_task(spec)


def one_batch(task, seed=0):
    return next(task.batches(8, torch.Generator().manual_seed(seed)))


def test_training_changes_both_towers_and_the_exported_file_is_measured(task, tmp_path):
    spec = TrainSpec.model_validate(RECIPE)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    model = train_model(task, spec.loop, tmp_path)
    for name in ("visual.conv1.weight", "token_embedding.weight", "logit_scale", "positional_embedding"):
        assert (model.state_dict()[name] != before[name]).any(), name
    measured = task.export(model, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "accuracy.json").read_text())
    assert record["images"] == 12
    assert record["zero_shot_top1"] == measured["zero_shot_top1"]
    assert record["text_to_image_r5"] == measured["text_to_image_r5"]
    loaded, tokenizer = load_clip(tmp_path / "model")
    assert torch.equal(loaded.visual.proj, model.visual.proj.half().float())
    assert tokenizer.words == CONFIG.words


def test_the_loss_is_that_of_clip_where_every_caption_is_of_one_picture(task):
    task.begin_stage({})
    task.model.train()
    batch = one_batch(task)
    B = len(batch.images)
    assert batch.right[:, :B].sum() == B
    images, texts, scale = task.model(batch.images, batch.texts)
    logits = scale * images @ texts.T
    own = torch.arange(B)
    expected = (cross_entropy(logits, own) + cross_entropy(logits[:, :B].T, own)) / 2
    torch.testing.assert_close(task.loss(batch), expected)


def test_wrong_captions_are_wrong_and_made_of_the_same_words_but_one_or_two(task):
    for seed in range(5):
        batch = one_batch(task, seed)
        right, wrong = batch.texts.chunk(2)
        changed = (right != wrong).sum(1)
        assert set(changed.tolist()) <= {0, 1, 2}
        assert (changed > 0).any()
        assert not batch.right[:, 8:][torch.eye(8, dtype=torch.bool) & (changed > 0)].any()
        kinds = [{task.tokenizer.ids[word] for word in kind} for kind in KINDS]
        for row, column in (right != wrong).nonzero().tolist():
            pair = {int(right[row, column]), int(wrong[row, column])}
            assert any(pair <= kind for kind in kinds)


def test_both_captions_of_a_picture_are_right_for_it(task):
    batch = task._batch([0, 0, 1], torch.Generator().manual_seed(0))
    assert batch.right[:, :3].tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_a_stage_of_short_captions_shows_only_those_for_as_many_steps(task):
    task.begin_stage({"most_words": 10})
    batches = list(task.batches(8, torch.Generator().manual_seed(0)))
    assert len(batches) == 24 // 8
    assert all(int((batch.texts > 0).sum(1).max()) <= 12 for batch in batches)


def test_fewer_patches_go_through_the_blocks_in_training_alone(task):
    lengths = []
    task.model.visual.transformer.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    task.begin_stage({"patches": 9})
    batch = one_batch(task)
    task.model.train()
    task.loss(batch)
    task.model.eval()
    task.evaluate(task.model)
    task.begin_stage({})
    task.model.train()
    task.loss(batch)
    assert lengths == [10, 37, 37]


def test_the_patches_that_stay_are_those_that_stand_out(task):
    task.begin_stage({"patches": 1})
    images = torch.zeros(2, 3, 48, 48)
    images[0, :, 8:16, 16:24] = 1.0  # row 1, column 2 of six
    images[1, 0, 40:, 40:] = -2.0
    assert task._stand_out(images).tolist() == [[8], [35]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patch": 3}, "no stage setting 'patch'"),
        ({"patches": 37}, "from 1 to the 36"),
        ({"most_words": 2}, "no caption has at most 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(task, settings, said):
    with pytest.raises(ConfigError, match=said):
        task.begin_stage(settings)


def test_alternatives_must_be_words_of_the_model(task):
    spec = TrainSpec.model_validate({**RECIPE, "task": {**RECIPE["task"], "alternatives": [["red", "pink"]]}})
    with pytest.raises(ConfigError, match="'pink' is none of the model's words"):
        ContrastiveTask(spec.task)


def test_the_shipped_recipe_says_how_large_the_model_is():
    spec = load_spec("configs/train/clip_shapes.yaml")
    assert plan(spec)["model"].endswith("numbers")
    assert spec.task.model.words == CONFIG.words
