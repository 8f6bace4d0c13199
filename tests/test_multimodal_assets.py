"""Multimodal models by name, folder or hub id."""

import json

import pytest
import torch

from tests.multimodal import recipe
from tokred.assets import list_models, load_model
from tokred.errors import ConfigError, DataError
from tokred.multimodal_assets import list_multimodal_models, load_multimodal
from tokred.train.vqa_model import build_multimodal, build_processor, save_multimodal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model as training exports it."""
    spec = recipe().task.model
    processor = build_processor(spec)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_multimodal(build_multimodal(spec, processor), processor, folder)
    return folder


def test_a_folder_gives_model_and_processor(folder):
    model, processor = load_multimodal(folder)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(processor).__name__ == "LlavaProcessor"
    assert not model.training
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_image_encoders_and_multimodal_models_are_listed_apart():
    assert "vit-fmnist" in list_models()
    assert not set(list_models()) & set(list_multimodal_models())


@pytest.mark.parametrize("name", list_multimodal_models())
def test_every_model_that_ships_loads_and_is_small(name):
    model, processor = load_multimodal(name)
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) < 12e6
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what shape is present?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    side = model.config.vision_config.image_size
    image = torch.full((3, side, side), 255, dtype=torch.uint8)
    image[:, 20:40, 20:40] = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    inputs = processor(images=image, text=text, return_tensors="pt")
    said = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    assert processor.batch_decode(said, skip_special_tokens=True)[0]


def test_a_name_that_is_nothing_is_refused_with_what_ships():
    with pytest.raises(DataError, match=r"'nothing'.*ship with tokred.*organisation/model"):
        load_multimodal("nothing")


def test_an_image_encoder_is_pointed_to_the_other_loader():
    with pytest.raises(DataError, match=r"vit-fmnist|load_model"):
        load_multimodal("vit-fmnist")


def test_a_multimodal_folder_is_no_image_encoder(folder):
    with pytest.raises((ConfigError, DataError)):
        load_model(folder)


def test_weights_that_are_no_safetensors_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(DataError, match="no safetensors"):
        load_multimodal(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_config_that_is_not_of_transformers_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match="model_type"):
        load_multimodal(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_multimodal(tmp_path.parent)


def test_a_damaged_folder_is_named(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match="cannot be loaded as a multimodal model"):
        load_multimodal(tmp_path)


def test_no_code_of_a_model_is_run(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "unheard-of",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.M"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('code was run')\n")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_multimodal(tmp_path)
