"""A sweep over a tokenizer measures bits, distortion and speed at every number of tokens."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tokenizers.tiny import flextok, karl
from tokred.cli.tables import planned_table, result_tables
from tokred.errors import ConfigError, DataError
from tokred.sweep import Document, parse_spec, plot_results, preview, read_results, run_sweep
from tokred.sweep.strips import draw_strips
from tokred.tokenizer_assets import save_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("models")
    for name, model in (("flextok", flextok()), ("karl", karl())):
        save_tokenizer(model, place / name)
    return {name: str(place / name) for name in ("flextok", "karl")}


@pytest.fixture
def data(tmp_path: Path) -> str:
    noise = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 5)):
        for index in range(count):
            folder = tmp_path / "data" / split / "ab"[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    (tmp_path / "data" / "test" / "a" / "broken.png").write_bytes(b"no picture")
    return str(tmp_path / "data")


def spec_of(models: list[str], data: str, *methods: dict[str, Any], **more: Any) -> Any:
    content = {"models": models, "data": data, "methods": list(methods), "batch_size": 3, "rounds": 2, "threads": 1}
    return parse_spec(Document({**content, **more}))


def test_every_number_of_tokens_has_its_bits_and_its_distortion(folders: dict[str, str], data: str, tmp_path: Path):
    spec = spec_of([folders["flextok"]], data, {"method": "length", "tokens": {"grid": [1, 4]}, "steps": 3})
    rows = run_sweep(spec, tmp_path / "runs")
    assert [row["status"] for row in rows] == ["finished"] * 3, [row.get("error") for row in rows]
    every, one, four = rows
    assert [row["tokens"] for row in (one, four, every)] == [1, 4, 6]
    assert four["bits"] == pytest.approx(4 * one["bits"])
    assert (one["images"], one["skipped"]) == (5, 1)
    for row in rows:
        assert 0 < row["pixel_error"] < 1
        assert row["frechet_distance"] > 0
        assert row["feature_distance"] > 0
        assert row["encode_images_per_second"] > 0
        assert row["probe_top1_originals"] == rows[0]["probe_top1_originals"]
    assert len({row["psnr"] for row in rows}) == 3
    assert "strip" not in read_results(tmp_path / "runs").columns
    assert [bool(row["strip_originals"]) for row in rows] == [True, False, False]
    table = next(result_tables(rows))
    assert [str(cell) for cell in table.columns[2].cells] == ["6.0", "4.0", "1.0"]


def test_the_same_seed_draws_the_same_pictures(folders: dict[str, str], data: str, tmp_path: Path):
    spec = spec_of([folders["flextok"]], data, {"method": "length", "tokens": 2, "steps": 2})
    first, second = (run_sweep(spec, tmp_path / name)[1] for name in "ab")
    assert (first["psnr_drawn"], first["strip"]) == (second["psnr_drawn"], second["strip"])


def test_the_originals_stand_below_what_was_drawn(tmp_path: Path):
    png = io.BytesIO()
    Image.new("RGB", (8, 4)).save(png, "PNG")
    row = {"model": "flextok", "tokens": 1.0, "bits": 8.0, "psnr_drawn": 20.0, "strip": png.getvalue()}
    sizes = []
    for name, more in (("without", {}), ("with", {"strip_originals": png.getvalue()})):
        draw_strips(tmp_path / f"{name}.png", [row, {**row, "bits": 16.0, **more}])
        with Image.open(tmp_path / f"{name}.png") as picture:
            sizes.append(picture.height)
    assert sizes[1] - sizes[0] == pytest.approx(0.95 * 110, abs=2), "one row of pictures more"


def test_methods_can_be_for_some_of_the_models(folders: dict[str, str], data: str, tmp_path: Path):
    spec = spec_of(
        list(folders.values()),
        data,
        {"method": "length", "models": [folders["flextok"]], "tokens": 2},
        {"method": "length", "models": [folders["karl"]], "quality": {"grid": [0.05, 0.2]}},
    )
    assert [(point.model, point.label) for point in spec.points()] == [
        (folders["flextok"], ""),
        (folders["flextok"], "tokens=2"),
        (folders["karl"], ""),
        (folders["karl"], "quality=0.05"),
        (folders["karl"], "quality=0.2"),
    ]
    rows = run_sweep(spec, tmp_path / "runs")
    assert [row["status"] for row in rows] == ["finished"] * 5, [row.get("error") for row in rows]
    assert len(list(result_tables(rows))) == 2
    outlooks = [outlook for _, outlook in preview(spec)]
    own = "as many tokens as it writes by itself"
    assert outlooks == [own, "2 tokens a picture", own, *["as many tokens as the pictures need"] * 2]
    assert planned_table(preview(spec)).row_count == 5


def test_a_plot_comes_with_what_was_drawn(folders: dict[str, str], data: str, tmp_path: Path):
    run_sweep(spec_of([folders["flextok"]], data, {"method": "length", "tokens": 2, "steps": 2}), tmp_path / "runs")
    png, html, pictures = plot_results(tmp_path / "runs", x="bits", y="psnr")
    assert pictures.name == "pareto_bits_psnr_pictures.png"
    with Image.open(pictures) as picture:
        assert picture.width > 500
    assert "PSNR of the estimate" in html.read_text()
    assert png.is_file()


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({"method": "tome", "r": 8}, "'tome' is no method for tokenizers"),
        ({"method": "length", "token": 8}, "no knob 'token'"),
        ({"method": "length", "models": ["other"], "tokens": 2}, "none of the sweep's models"),
    ],
)
def test_methods_that_tokenizers_do_not_have_are_refused(folders: dict[str, str], data: str, methods: Any, said: str):
    with pytest.raises(ConfigError, match=said):
        spec_of([folders["flextok"]], data, methods)


def test_tokenizers_and_other_models_are_not_mixed(folders: dict[str, str], data: str):
    with pytest.raises(DataError, match="Write two sweeps"):
        spec_of([folders["karl"], "vit-fmnist"], data, {"method": "length", "tokens": 2})


def test_what_a_tokenizer_cannot_do_is_the_error_of_its_point(folders: dict[str, str], data: str, tmp_path: Path):
    spec = spec_of([folders["karl"]], data, {"method": "length", "steps": 4}, {"method": "length", "tokens": 99})
    errors = [row.get("error") for row in run_sweep(spec, tmp_path / "runs")]
    assert errors[0] is None
    assert "it has no steps" in errors[1]
    assert "99 a picture; the model writes 1 to 6" in errors[2]
