"""CLIP models in files: what comes back, what is refused, and the one that ships."""

import json

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tokred
from tests.clip import CONFIG, tiny_clip
from tokred.assets import list_models
from tokred.clip_assets import is_clip, list_clip_models, load_clip, read_clip_config, require_clip, save_clip
from tokred.data import load_captions, load_dataset, transform_for
from tokred.data.tensors import Normalize
from tokred.errors import ConfigError, DataError
from tokred.evaluate.retrieval import embed_images, retrieve
from tokred.evaluate.zero_shot import class_features, nearest_class
from tokred.folders import shipped_folder


@pytest.fixture
def folder(tmp_path):
    save_clip(tiny_clip()[0], CONFIG, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="module")
def shipped():
    return load_clip("clip-shapes")


def change(folder, **keys):
    raw = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(raw))


def test_a_saved_model_comes_back_in_eval_mode_with_its_half_precision_weights(folder):
    (model, tokenizer), stored = load_clip(folder), load_file(folder / "model.safetensors")
    assert not model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, stored[key].float())
    assert tokenizer.words == CONFIG.words
    assert tokenizer.vocab_size == model.vocab_size
    assert read_clip_config(folder / "config.json") == CONFIG
    assert is_clip(str(folder))


def test_a_name_that_is_nothing_is_refused_with_what_there_is():
    with pytest.raises(DataError, match=r"clip-shapes.*such as ViT-B-32/openai"):
        load_clip("clip-shape")
    assert not is_clip("vit-fmnist")


def test_unknown_keys_and_towers_that_cannot_be_built_are_refused(folder):
    change(folder, embed_dims=3)
    with pytest.raises(ConfigError, match=r"embed_dims.*Did you mean 'embed_dim'"):
        load_clip(folder)
    save_clip(tiny_clip()[0], CONFIG, folder)
    change(folder, text={"context_length": 32, "width": 32, "layers": 1, "heads": 3})
    with pytest.raises(ConfigError, match="cannot build"):
        load_clip(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="JSON"):
        read_clip_config(folder / "config.json")


def test_weights_that_do_not_fit_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("visual.proj")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"visual\.proj"):
        load_clip(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match="not a readable safetensors file"):
        load_clip(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="does not exist"):
        load_clip(folder)


def test_the_embedded_model_is_small_and_no_image_encoder():
    assert list_clip_models() == ("clip-shapes",)
    assert "clip-shapes" not in list_models()
    files = list((shipped_folder("models") / "clip-shapes").iterdir())
    assert sum(file.stat().st_size for file in files) <= 8e6
    assert {file.name for file in files} == {"README.md", "accuracy.json", "config.json", "model.safetensors"}


def test_zero_reduction_of_the_embedded_model_is_the_identity_and_a_reduction_removes_tokens(shipped):
    model, _ = shipped
    images = Normalize(*(model.pretrained_cfg[name] for name in ("mean", "std")))(load_captions("scenes").images[:3])
    with torch.no_grad():
        expected = model.encode_image(images)
        with tokred.patch(model, tokred.ToMe(r=0)):
            assert torch.equal(model.encode_image(images), expected)
        with tokred.patch(model, tokred.ToMe(r=10), trace=True) as handle:
            reduced = model.encode_image(images)
            assert list(handle.trace.tokens_per_layer) == [145 - 10 * layer for layer in range(1, 7)]
        assert not torch.equal(reduced, expected)
        assert torch.equal(model.encode_image(images), expected)


def test_the_transform_of_the_embedded_model_is_that_of_its_training(shipped):
    model, _ = shipped
    image = load_captions("scenes").images[0]
    config = read_clip_config(shipped_folder("models") / "clip-shapes" / "config.json")
    assert torch.equal(transform_for(model)(image), Normalize(config.mean, config.std)(image))


def test_the_embedded_model_knows_every_word_of_its_captions(shipped):
    _, tokenizer = shipped
    for own in load_captions("scenes").captions:
        assert tokenizer(list(own)).shape == (2, tokenizer.context_length)


def test_the_embedded_model_finds_captions_and_names_classes_as_its_card_says(shipped):
    model, tokenizer = shipped
    record = json.loads((shipped_folder("models") / "clip-shapes" / "accuracy.json").read_text())
    normalize = Normalize(*(model.pretrained_cfg[name] for name in ("mean", "std")))
    found = retrieve(model, tokenizer, load_captions("scenes"), normalize).columns()
    for name, value in found.items():
        assert value == pytest.approx(record[name], abs=0.3), name  # other machines add in another order
    data = load_dataset("single-shapes")
    classes = class_features(model, tokenizer, data.classes, model.pretrained_cfg["templates"])
    named = nearest_class(embed_images(model, data.images[:300], normalize), classes)
    top1 = 100 * (named == data.labels[:300]).double().mean().item()
    assert top1 == pytest.approx(record["zero_shot_top1"], abs=8)  # a sample of 300


def test_models_of_open_clip_go_by_architecture_and_tag_and_have_shapes_without_weights():
    assert is_clip("ViT-B-32/openai")
    assert not is_clip("ViT-B-32")
    assert not is_clip("llava-hf/llava-1.5-7b-hf")
    with pytest.raises(DataError, match=r"ViT-B-32 has no weights 'opnai' in open_clip. Try openai"):
        require_clip("ViT-B-32/opnai")
    model, _ = load_clip("ViT-B-32/openai", pretrained=False)
    assert next(model.parameters()).is_meta
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)
    assert "a bad photo of a {}." in model.pretrained_cfg["templates"]
    assert transform_for(model)(Image.new("RGB", (300, 400))).shape == (3, 224, 224)


def test_the_weights_of_open_clip_are_asked_for_by_their_tag(monkeypatch):
    def create(architecture, pretrained):
        assert (architecture, pretrained) == ("ViT-B-32", "openai")
        model = tiny_clip()[0].train()
        model.visual.preprocess_cfg = {
            "mean": (0.5,) * 3, "std": (0.2,) * 3, "interpolation": "bicubic", "resize_mode": "squash",
        }  # fmt: skip
        return model

    monkeypatch.setattr(open_clip, "create_model", create)
    model, tokenizer = load_clip("ViT-B-32/openai")
    assert not model.training
    assert transform_for(model)(Image.new("RGB", (30, 90))).shape == (3, 48, 48)
    assert tokenizer(["a photo"]).shape == (1, 77)

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(DataError, match=r"cannot be fetched \(OSError: no network\). Offline, use .*clip-shapes"):
        load_clip("ViT-B-32/openai")
