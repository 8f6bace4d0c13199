"""Tokenizers on disk."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tokenizers.test_prior import prior
from tests.tokenizers.tiny import flextok, karl, pictures, titok
from tokred.assets import list_models
from tokred.errors import ConfigError, DataError
from tokred.tokenizer_assets import list_tokenizers, load_prior, load_tokenizer, save_tokenizer
from tokred.tokenizers import tokenizers


@pytest.mark.parametrize("make", [flextok, karl, titok])
def test_a_saved_tokenizer_comes_back(make, tmp_path):
    model = make().half().float()
    save_tokenizer(model, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded.encode(pictures()), model.encode(pictures()))


def test_a_saved_prior_comes_back(tmp_path):
    model = prior().half().float()
    save_tokenizer(model, tmp_path)
    classes = torch.tensor([0, 1])
    assert torch.equal(load_prior(tmp_path).generate(classes, temperature=0), model.generate(classes, temperature=0))
    with pytest.raises(ConfigError, match="holds a prior"):
        load_tokenizer(tmp_path)
    save_tokenizer(flextok(), tmp_path)
    with pytest.raises(ConfigError, match="holds a flextok"):
        load_prior(tmp_path)


def test_missing_and_extra_tensors_are_named(tmp_path):
    path = save_tokenizer(flextok(), tmp_path)
    weights = load_file(path)
    del weights["decoder.mask_token"]
    save_file({**weights, "surprise": torch.zeros(1)}, path)
    with pytest.raises(DataError, match=r"Missing: decoder\.mask_token\. Not expected: surprise"):
        load_tokenizer(tmp_path)


def test_a_truncated_file_and_other_shapes_are_refused(tmp_path):
    path = save_tokenizer(flextok(), tmp_path)
    weights = load_file(path)
    save_file({**weights, "decoder.mask_token": torch.zeros(3)}, path)
    with pytest.raises(DataError, match=r"decoder\.mask_token is \(3,\)"):
        load_tokenizer(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="not a readable"):
        load_tokenizer(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        load_tokenizer(tmp_path)


def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path):
    save_tokenizer(flextok(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "register": 3}))
    with pytest.raises(ConfigError, match="Did you mean 'registers'"):
        load_tokenizer(tmp_path)


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path):
    model = flextok()
    with torch.no_grad():
        model.decoder.mask_token[0] = 1e6
    with pytest.raises(DataError, match="half precision"):
        save_tokenizer(model, tmp_path)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(DataError, match="is no tokenizer that ships"):
        load_tokenizer("flextok-nothing")
    with pytest.raises(DataError, match="is no prior"):
        load_prior("nothing")


def test_tokenizers_are_not_listed_among_the_encoders():
    assert not set(list_tokenizers()) & set(list_models())
    assert set(tokenizers()) == {"flextok", "karl", "titok"}


@pytest.mark.parametrize("name", list_tokenizers())
def test_every_tokenizer_that_ships_writes_and_draws(name):
    model = load_tokenizer(name)
    codes = model.encode(pictures(2, model.channels, model.side))
    assert model.decode(codes).shape == (2, model.channels, model.side, model.side)
