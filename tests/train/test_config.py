"""Recipes: all that ship load, and what is wrong in one is named."""

import pytest
import yaml

from tokred.assets import build_model
from tokred.errors import ConfigError
from tokred.folders import shipped_folder
from tokred.train.classification import model_config
from tokred.train.config import VQA, Classification, load_spec
from tokred.train.vqa_model import build_multimodal, build_processor

RECIPES = sorted(shipped_folder("configs/train").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_builds_its_model(path):
    task = load_spec(path).task
    if isinstance(task, VQA):
        model = build_multimodal(task.model, build_processor(task.model))
        assert 2 * sum(p.numel() for p in model.parameters()) < 12e6
    elif isinstance(task, Classification):
        model = build_model(model_config(task))
        assert 2 * sum(p.numel() for p in model.parameters()) < 4e6


def recipe(tmp_path, change):
    raw = yaml.safe_load((shipped_folder("configs/train") / "vit_fmnist.yaml").read_text())
    change(raw)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_an_unknown_key_is_refused_by_name_with_the_nearest_known_one(tmp_path):
    path = recipe(tmp_path, lambda raw: raw["loop"].update(batchsize=3))
    with pytest.raises(ConfigError, match=r"loop\.batchsize.*Did you mean 'batch_size'"):
        load_spec(path)


def test_a_wrong_value_is_named_with_its_place(tmp_path):
    path = recipe(tmp_path, lambda raw: raw["loop"].update(batch_size=-1))
    with pytest.raises(ConfigError, match=r"loop\.batch_size.*greater than 0"):
        load_spec(path)


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "a: [", "!!python/object/apply:os.getcwd []"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        load_spec(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        load_spec(tmp_path / "nowhere.yaml")
