import runpy
from pathlib import Path

import pytest

from tokred.errors import ConfigError
from tokred.folders import shipped_folder
from tokred.sweep import Document, load_spec, parse_spec

GOOD = """\
models: [vit-fmnist]
data: fashion-mnist-sample
methods:
  - method: tome
    r: {grid: [4, 8, [8, -1.0]]}
    prop_attn: {grid: [true, false]}
  - method: topk
    keep: 0.5
    layers: [1, 2]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def test_grids_multiply_and_plain_lists_stay_one_value(tmp_path: Path):
    points = load_spec(write(tmp_path, GOOD)).points()
    knobs = [dict(point.knobs) for point in points]
    assert knobs[0] == {}
    assert points[0].method is None
    assert knobs[1:7] == [{"r": r, "prop_attn": p} for r in (4, 8, (8, -1.0)) for p in (True, False)]
    assert knobs[7:] == [{"keep": 0.5, "layers": (1, 2)}]


def test_the_key_changes_with_every_setting_and_with_nothing_else():
    base = {"models": ["m"], "data": "d", "methods": [{"method": "tome", "r": 4}]}
    keys = {point.key for point in parse_spec(Document(base)).points()}
    assert keys == {point.key for point in parse_spec(Document(dict(base))).points()}
    for change in (
        {"images": 5},
        {"batch_size": 7},
        {"rounds": 3},
        {"seed": 1},
        {"dtype": "bfloat16"},
        {"threads": 63},
    ):
        assert not keys & {point.key for point in parse_spec(Document({**base, **change})).points()}


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("data: f", "batchsize: 4\ndata: f", ["line 2", "'batchsize'", "'batch_size'"]),
        ("keep: 0.5", "kep: 0.5", ["line 8", "methods[1].kep", "'kep'", "'keep'"]),
        ("method: topk", "method: topkk", ["line 7", "methods[1]", "'topkk'", "'topk'"]),
        ("keep: 0.5", "keep: 1.5", ["line 8", "methods[1].keep", "1.5", "(0, 1]"]),
        ("r: {grid: [4, 8, [8, -1.0]]}", "r: -3", ["line 5", "methods[0].r", "negative"]),
        ("r: {grid: [4,", "r: {gird: [4,", ["line 5", "methods[0].r", "grid"]),
        ("data: f", "batch_size: none\ndata: f", ["line 2", "batch_size", "none"]),
        ("models: [vit-fmnist]\n", "", ["'models'", "missing"]),
        ("data: f", "models: [b]\ndata: f", ["line 2", "twice"]),
        ("models: [", "models: [[", ["line", "is not YAML"]),
    ],
)
def test_a_wrong_file_is_refused_with_the_place_and_what_was_meant(
    tmp_path: Path, old: str, new: str, named: list[str]
):
    assert old in GOOD
    with pytest.raises(ConfigError) as refusal:
        load_spec(write(tmp_path, GOOD.replace(old, new, 1)))
    for part in [*named, "sweep.yaml"]:
        assert part in str(refusal.value)


@pytest.mark.parametrize("path", sorted(shipped_folder("configs/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_loads_by_file_and_by_name(path: Path):
    assert load_spec(path).points() == load_spec(path.stem).points()


@pytest.mark.parametrize("text", ["", "- models", "just words"])
def test_a_file_that_is_no_mapping_is_told_what_a_sweep_is(tmp_path: Path, text: str):
    with pytest.raises(ConfigError, match="a sweep is a mapping with the keys models, data, methods"):
        load_spec(write(tmp_path, text))


def test_an_unknown_name_is_answered_with_the_shipped_ones():
    with pytest.raises(ConfigError, match="quickstart"):
        load_spec("quikstart")


def test_a_value_of_a_paper_stands_beside_the_point_and_decides_about_nothing():
    base = {"models": ["m", "n"], "data": "d", "methods": [{"method": "tome", "r": 4}]}
    quoted = {
        **base,
        "paper_top1": {"m": 80.0},
        "methods": [{"method": "tome", "r": 4, "paper_top1": {"n": 79.0}}],
    }
    plain, with_paper = (parse_spec(Document(content)).points() for content in (base, quoted))
    assert [point.paper_top1 for point in with_paper] == [80.0, None, None, 79.0]
    assert [point.key for point in plain] == [point.key for point in with_paper]


def test_the_schema_for_editors_is_current():
    docs = Path(__file__).parents[2] / "docs"
    made = runpy.run_path(str(docs / "schema.py"))["schema"]()
    assert (docs / "sweep.schema.json").read_text() == made, "run docs/schema.py"
