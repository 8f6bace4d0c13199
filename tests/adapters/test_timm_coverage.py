"""Every plain ViT name of timm keeps the promises; by default one name of every family, all of them with ``--full``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm

import tokred
from tokred.errors import UnsupportedModelError

from . import zoo
from .promises import assert_same, keeps_promises, run, snapshot, survivors_are_exact

RECORD = Path(__file__).resolve().parents[2] / "docs" / "coverage.json"
OTHERS = [name for name in tokred.methods() if name != "tome"]
# what decides how a method reads and reduces tokens; the rest of a family is in the blocks' own modules
STRUCTURE = ("block", "attention", "pool", "class token", "rope", "bias")


@cache
def families() -> dict[str, dict[str, Any]]:
    return dict(zoo.every_family())


def one_of_each(key: tuple[str, ...] | None = None) -> list[str]:
    """The first name of every family, or of every combination of some of its traits; plain stems before ResNets."""
    found: dict[tuple, str] = {}
    for name, traits in sorted(families().items(), key=lambda entry: entry[1]["stem"] not in zoo.PLAIN_STEMS):
        if key is None:
            found.setdefault(tuple(traits.values()), name)
        else:
            found.setdefault((*(traits[k] for k in key), traits["prefix"] > 0), name)
    return list(found.values())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Name the models lazily: building all of them, without memory, takes some seconds."""
    if "name" in metafunc.fixturenames:
        chosen = one_of_each(STRUCTURE if "method" in metafunc.fixturenames else None)
        rest = [pytest.param(name, marks=pytest.mark.full) for name in zoo.names() if name not in chosen]
        if "method" in metafunc.fixturenames:
            rest = [p for p in rest if p.values[0] in one_of_each()]
        metafunc.parametrize("name", chosen + rest)


def test_tome_keeps_its_promises_on_every_model(name):
    model = zoo.build(name)
    x = zoo.images(model)
    keeps_promises(model, tokred.ToMe(r=4), x)
    survivors_are_exact(model, x)


@pytest.mark.parametrize("method", OTHERS)
def test_every_method_keeps_its_promises_on_every_structure(name, method):
    model = zoo.build(name)
    keeps_promises(model, tokred.methods()[method](), zoo.images(model))


def test_tome_removes_four_tokens_in_every_block():
    from .promises import tokens_seen

    model = zoo.build("vit_small_patch16_224")
    with tokred.patch(model, tokred.ToMe(r=4)):
        seen = tokens_seen(model, zoo.images(model))
    assert (seen.blocks, seen.mlps) == ([197, 193, 189], [193, 189, 185])


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformerBlock"),
        ("hiera_tiny_224", "HieraBlock"),
        ("cait_xxs24_224", "LayerScaleBlock"),
        ("xcit_nano_12_p16_224", "XCABlock"),
        ("convnext_atto", "ConvNeXtStage"),
        ("resnet18", "BasicBlock"),
    ],
)
def test_other_models_are_refused_by_name_and_left_alone(other, found):
    model = timm.create_model(other, num_classes=10).eval()
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError) as raised:
        tokred.patch(model, tokred.ToMe(r=4))
    message = str(raised.value)
    assert type(model).__name__ in message
    assert found in message
    assert "Supported: " in message
    assert "DINOv3" in message
    assert "tokred.register_adapter" in message
    assert_same(model, before)


def test_the_record_holds_every_name_and_every_one_passes():
    record = json.loads(RECORD.read_text())
    assert record["pass"] == sum(result == "pass" for result in record["results"].values())
    if record["timm"] == timm.__version__:
        assert list(record["results"]) == zoo.names()
    assert [name for name, result in record["results"].items() if result != "pass"] == []


def test_nontrivial_parameters_leave_nothing_at_its_start():
    model = zoo.create("beit_base_patch16_224")
    started = {name: p.clone() for name, p in model.named_parameters()}
    zoo.randomise(model)
    unchanged = [name for name, p in model.named_parameters() if (p == started[name]).any()]
    assert unchanged == []
    assert run(model, zoo.images(model)).abs().max() < 100
