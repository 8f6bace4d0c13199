"""Finding models: those that ship, folders, timm names; and nothing from a file is trusted."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tokred.assets import ModelConfig, build_model, list_models, load_model, read_config, save_model
from tokred.data import Batches, load_dataset, transform_for
from tokred.errors import ConfigError, DataError
from tokred.evaluate.classification import top1
from tokred.folders import shipped_folder

CONFIG = ModelConfig(
    architecture="vision_transformer",
    args={"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 1, "num_heads": 2},
    mean=(0.5,),
    std=(0.5,),
    classes=("a", "b", "c"),
)
SHIPPED = ("vit-fmnist", "vit-fmnist-reg")


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_model(build_model(CONFIG), CONFIG, tmp_path / "tiny")
    return tmp_path / "tiny"


def change(folder, **keys):
    raw = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(raw))


def test_a_saved_model_comes_back_in_eval_mode_with_its_half_precision_weights(folder):
    model, stored = load_model(folder), load_file(folder / "model.safetensors")
    assert not model.training
    for key, value in model.state_dict().items():
        assert stored[key].dtype == torch.float16
        assert torch.equal(value, stored[key].float())


def test_a_loaded_model_says_how_pictures_are_fed_to_it(folder):
    cfg = load_model(folder).pretrained_cfg
    assert cfg["input_size"] == (1, 8, 8)
    assert cfg["mean"] == cfg["std"] == (0.5,)
    assert cfg["classes"] == ("a", "b", "c")


@pytest.mark.parametrize("stem", [None, {"channels": (4, 8), "strides": (2, 2)}])
@pytest.mark.parametrize("architecture", ["vision_transformer", "eva"])
def test_both_architectures_build_with_a_patch_projection_and_with_a_stem(architecture, stem):
    config = ModelConfig.model_validate(CONFIG.model_dump() | {"architecture": architecture, "conv_stem": stem})
    model = build_model(config)
    assert model.patch_embed.grid_size == (2, 2)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_an_unknown_key_in_config_json_is_refused_by_name(folder):
    change(folder, arch="vision_transformer")
    with pytest.raises(ConfigError, match="'arch'"):
        load_model(folder)


def test_an_unknown_argument_is_refused_by_name_with_the_nearest_known_one(folder):
    change(folder, args=CONFIG.args | {"embed_dims": 8})
    with pytest.raises(ConfigError, match=r"'embed_dims'.*Did you mean 'embed_dim'"):
        load_model(folder)


@pytest.mark.parametrize("name", ["os.system", "resnet50", "VisionTransformer"])
def test_an_architecture_outside_the_list_is_refused(folder, name):
    change(folder, architecture=name)
    with pytest.raises(ConfigError, match="architecture"):
        load_model(folder)


def test_arguments_that_name_classes_are_refused(folder):
    change(folder, args=CONFIG.args | {"norm_layer": "os.system"})
    with pytest.raises(ConfigError, match="norm_layer"):
        load_model(folder)


def test_arguments_that_do_not_fit_together_are_refused(folder):
    change(folder, args=CONFIG.args | {"num_heads": 3})
    with pytest.raises(ConfigError, match="cannot be built"):
        load_model(folder)


def test_weights_that_do_not_fit_the_config_are_named(folder):
    change(folder, args=CONFIG.args | {"depth": 2})
    with pytest.raises(DataError, match=r"Missing: blocks\.1"):
        load_model(folder)
    change(folder, args=CONFIG.args | {"num_classes": 4})
    with pytest.raises(DataError, match=r"head\.\w+ is \(3"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_or_broken_file_is_named(folder, name):
    (folder / name).write_bytes(b"\xff broken")
    with pytest.raises((DataError, ConfigError), match=name):
        load_model(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=name):
        load_model(folder)


def test_weights_beyond_half_precision_are_refused(tmp_path):
    model = build_model(CONFIG)
    model.head.bias.data.fill_(1e6)
    with pytest.raises(DataError, match=r"head\.bias"):
        save_model(model, CONFIG, tmp_path)


def test_a_timm_model_is_found_by_its_name():
    assert isinstance(load_model("test_vit", pretrained=False), timm.models.VisionTransformer)


def test_an_unknown_name_gets_the_nearest_known_one():
    with pytest.raises(DataError, match=r"ships with tokred.*Did you mean.*vit-fmnist"):
        load_model("vit-fmnst")


def test_a_hub_that_cannot_be_reached_is_said_with_the_models_that_ship(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(DataError, match=r"cannot be fetched from the hub.*vit-fmnist"):
        load_model("deit_small_patch16_224")


@pytest.mark.parametrize("name", SHIPPED)
def test_each_shipped_model_is_small_half_precision_and_described(name):
    assert name in list_models()
    folder = shipped_folder("models") / name
    assert (folder / "model.safetensors").stat().st_size <= 4_000_000
    floats = {v.dtype for v in load_file(folder / "model.safetensors").values() if v.is_floating_point()}
    assert floats == {torch.float16}
    card = (folder / "README.md").read_text()
    assert "MIT" in card
    assert "10,000" in card
    assert read_config(folder / "config.json").data == "fashion-mnist"


@pytest.mark.parametrize("name", SHIPPED)
def test_each_shipped_model_names_the_shipped_pictures(name):
    model = load_model(name)
    data = load_dataset("fashion-mnist-sample", transform=transform_for(model))
    part = torch.utils.data.Subset(data, range(0, 2000, 10))
    assert top1(model, Batches(part, 50)).top1 > 85


def test_a_shipped_model_can_be_copied_away_and_loaded_by_folder(tmp_path):
    shutil.copytree(shipped_folder("models") / "vit-fmnist", tmp_path / "mine")
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(load_model(tmp_path / "mine")(images), load_model("vit-fmnist")(images))


def test_a_weights_file_with_a_key_too_many_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(DataError, match="extra"):
        load_model(folder)
