"""What ``tokred train --dry-run`` says."""

import pytest

from tokred.cli import main
from tokred.folders import shipped_folder
from tokred.train.config import load_spec
from tokred.train.plan import plan

RECIPES = sorted(shipped_folder("configs/train").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_can_be_planned_without_its_data(path):
    spec = load_spec(path)
    told = plan(spec)
    assert told["recipe"] == spec.name
    assert "epochs" in told


def test_the_recipe_for_imagenet_has_the_published_sizes():
    told = plan(load_spec(shipped_folder("configs/train") / "flextok_imagenet.yaml"))
    assert told["encoder"].startswith("85,382,406")
    assert told["decoder"].startswith("172,448,320")
    assert told["ids"] == "64,000"
    assert told["sequence"] == "256 patches and 256 registers"


def test_a_dry_run_trains_nothing(capsys, tmp_path):
    path = shipped_folder("configs/train") / "flextok_imagenet.yaml"
    assert main(["train", str(path), "--dry-run", "--output", str(tmp_path / "run")]) == 0
    assert "172,448,320" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
