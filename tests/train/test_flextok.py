"""The tasks of tokenizers, on models that learn for two steps."""

import json

import pyarrow.parquet
import pytest
import torch
from PIL import Image

from tests.tokenizers.tiny import FLEXTOK, SHARED, TRUNK
from tokred.data import TensorImages
from tokred.errors import ConfigError, DataError
from tokred.tokenizer_assets import load_prior, load_tokenizer
from tokred.tokenizers import to_bytes
from tokred.tokenizers.karl import KARLConfig
from tokred.train import flextok, karl, pictures, prior
from tokred.train.config import FlexTokTraining, KARLTraining, LoopSpec, PriorTraining, Stage, TrainSpec
from tokred.train.flextok import FlexTokTask
from tokred.train.karl import KARLTask
from tokred.train.loop import train_model
from tokred.train.prior import PriorTask
from tokred.train.tasks import build_task

LOOP = LoopSpec(
    stages=(Stage(epochs=1),), batch_size=8, learning_rate=0.01, warmup_epochs=0.1, evaluate_every=0.5, bf16=False
)


@pytest.fixture(autouse=True)
def _small_data(monkeypatch):
    """Sixteen grey pictures of 14 x 14 in two classes to train, ten to test."""

    def load(name, split, transform=None):
        chance = torch.Generator().manual_seed(len(split))
        count = 20 if split == "train" else 10
        images = torch.rand(count, 1, 3, 3, generator=chance).repeat_interleave(5, -1).repeat_interleave(5, -2)
        return TensorImages((images * 255).to(torch.uint8)[..., :14, :14], torch.arange(count) % 2, ("a", "b"))

    for module in (pictures, flextok, karl, prior):
        monkeypatch.setattr(module, "load_dataset", load)


def flextok_spec(**changes):
    return FlexTokTraining(**{"kind": "flextok", "data": "some", "holdout": 4, "flip": True, "shift": 1,
                              "model": FLEXTOK, **changes})  # fmt: skip


@pytest.mark.parametrize("prediction", ["velocity", "image"])
def test_a_flextok_learns_and_its_file_writes_and_draws(prediction, tmp_path):
    spec = flextok_spec(model=FLEXTOK.model_copy(update={"prediction": prediction}))
    task = FlexTokTask(spec)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    longer = LOOP.model_copy(update={"stages": (Stage(epochs=4),), "evaluate_every": 4.0})
    model = train_model(task, longer, tmp_path)
    same = [name for name, value in task.model.state_dict().items() if torch.equal(value, before[name])]
    assert same == ["encoder.positions.table", "decoder.positions.table"]
    measured = task.export(model, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "curve.json").read_text())
    assert set(record["one_step_psnr"]) == {"1", "2", "4", "6"}
    assert measured["psnr_k6"] == record["one_step_psnr"]["6"]
    loaded = load_tokenizer(tmp_path / "model")
    assert loaded.config.data == "some"
    codes = loaded.encode(task.pictures.held)
    assert to_bytes(loaded.decode(codes[:, :2], steps=2, guidance=2.0)).shape == (4, 1, 16, 16)


def test_every_evaluation_leaves_a_row_and_a_grid_of_pictures(tmp_path):
    train_model(FlexTokTask(flextok_spec()), LOOP, tmp_path)
    table = pyarrow.parquet.read_table(tmp_path / "metrics.parquet").to_pylist()
    assert [row["step"] for row in table] == [1, 2]
    assert {"loss", "learning_rate", "psnr_k1", "psnr_k6"} <= table[0].keys()
    grids = sorted((tmp_path / "samples").iterdir())
    assert [path.name for path in grids] == ["0000001.png", "0000002.png"]
    assert Image.open(grids[0]).size == (4 * 16, 5 * 16)  # pictures; originals and four lengths


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    whole = train_model(FlexTokTask(flextok_spec()), LOOP, tmp_path / "whole")

    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model(FlexTokTask(flextok_spec()), LOOP, tmp_path / "parts", report=stop)
    resumed = train_model(FlexTokTask(flextok_spec()), LOOP, tmp_path / "parts", resume=True)
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    rows = pyarrow.parquet.read_table(tmp_path / "parts" / "metrics.parquet").num_rows
    assert rows == 2
    other = LOOP.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(ConfigError, match="another recipe"):
        train_model(FlexTokTask(flextok_spec()), other, tmp_path / "parts", resume=True)


def test_the_control_never_drops_tokens(monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(flextok, "draw_keep", never)
    task = FlexTokTask(flextok_spec(full_length=True))
    assert torch.isfinite(task.loss(torch.zeros(4, 1, 16, 16)))
    task = FlexTokTask(flextok_spec())
    task.begin_stage({"full_length": True})
    task.loss(torch.zeros(4, 1, 16, 16))
    task.begin_stage({})
    with pytest.raises(AssertionError):
        task.loss(torch.zeros(4, 1, 16, 16))
    with pytest.raises(ConfigError, match="no stage setting 'patch_pool'"):
        task.begin_stage({"patch_pool": 2})


def test_a_karl_learns_in_two_passes_and_its_file_says_how_many_tokens(tmp_path):
    config = KARLConfig(**SHARED, tokens=6, codebook=16)
    task = KARLTask(KARLTraining(kind="karl", data="some", holdout=4, budget_step=2, model=config))
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    model = train_model(task, LOOP, tmp_path)
    state = task.model.state_dict()
    assert not torch.equal(state["karl.halting.3.weight"], before["karl.halting.3.weight"])
    assert not torch.equal(state["karl.quantizer.inner.codebook"], before["karl.quantizer.inner.codebook"])
    assert float(state["best"]) < 1
    assert state["mass"][5:].sum() == 0  # errors above 0.04 are never asked for first
    measured = task.export(model, tmp_path / "model")
    assert 0 <= measured["tokens_at_0.05"] <= 6
    assert load_tokenizer(tmp_path / "model").encode(task.pictures.held, quality=0.1).shape == (4, 6)


def test_errors_that_were_reached_are_asked_for_less_often():
    config = KARLConfig(**SHARED, tokens=6, codebook=16)
    learner = KARLTask(KARLTraining(kind="karl", data="some", holdout=4, model=config)).model
    for _ in range(500):
        learner.achieved(0.025)
    share = learner.mass / learner.mass.sum()
    assert share[:3].sum() > 0.98  # 0.005, 0.01 and 0.02 are still ahead


def test_a_prior_learns_the_codes_of_a_tokenizer(tmp_path):
    task = FlexTokTask(flextok_spec())
    task.export(train_model(task, LOOP, tmp_path / "run"), tmp_path / "tokenizer")
    place = str(tmp_path / "tokenizer")
    spec = PriorTraining(
        kind="prior", data="some", holdout=4, tokenizer=place, flip=True, width=32, depth=1, head_width=16
    )
    learner = PriorTask(spec)
    assert learner.codes.shape == (2, 16, 6)
    model = train_model(learner, LOOP, tmp_path / "prior")
    measured = learner.export(model, tmp_path / "model")
    assert 0 < measured["test_bits_per_token"] < 12
    loaded = load_prior(tmp_path / "model")
    codes = loaded.generate(torch.tensor([0, 1]), 3, guidance=1.5)
    assert load_tokenizer(loaded.config.tokenizer).decode(codes, steps=2).shape == (2, 1, 16, 16)


def test_each_kind_of_recipe_finds_its_task():
    config = KARLConfig(**SHARED, tokens=6, codebook=16)
    assert isinstance(build_task(TrainSpec(name="a", task=flextok_spec(), loop=LOOP)), FlexTokTask)
    karl_spec = KARLTraining(kind="karl", data="some", holdout=4, model=config)
    assert isinstance(build_task(TrainSpec(name="b", task=karl_spec, loop=LOOP)), KARLTask)


def test_impossible_recipes_are_refused():
    with pytest.raises(DataError, match="only 20"):
        FlexTokTask(flextok_spec(holdout=20))
    config = KARLConfig(**{**SHARED, "encoder": TRUNK}, tokens=6, codebook=16)
    with pytest.raises(ConfigError, match="budget_step: 7"):
        KARLTask(KARLTraining(kind="karl", data="some", budget_step=7, model=config))


def test_pictures_of_a_folder_are_read_square_and_those_that_are_broken_replaced(tmp_path, monkeypatch):
    monkeypatch.undo()
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (30, 20 + number), (number * 20, 0, 0)).save(tmp_path / "train" / name / f"{number}.png")
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"no picture")
    found = pictures.Pictures(str(tmp_path), 16, 3, holdout=2, workers=0)
    batches = list(found.batches(3, torch.Generator().manual_seed(0)))
    assert [tuple(images.shape) for images, _ in batches] == [(3, 3, 16, 16)] * 2
    assert found.held.dtype == torch.uint8
