from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sweep.tiny import SHARED
from tokred.errors import ConfigError, DataError
from tokred.sweep import AXES, UNPATCHED, Document, Store, fronts, pareto_front, parse_spec, plot_results, run_sweep
from tokred.sweep.panels import choose_looks, curve_of, make_panels


@pytest.fixture
def results(tiny_model: str, pictures: str, tmp_path: Path) -> Path:
    methods = [
        {"method": "tome", "r": {"grid": [2, 4]}},
        {"method": "topk", "keep": 0.5},
        {"method": "tome", "budget": "1%"},
    ]
    content = {"models": [tiny_model], "data": pictures, "methods": methods, **SHARED}
    run_sweep(parse_spec(Document(content)), tmp_path / "results")
    return tmp_path / "results"


def test_a_plot_writes_a_picture_and_a_page_that_needs_no_network(results: Path):
    png, html = plot_results(results, x="gmacs", y="top1")
    assert (png.name, html.name) == ("pareto_gmacs_top1.png", "pareto_gmacs_top1.html")
    assert Image.open(png).size[0] > 800
    page = html.read_text()
    assert "Plotly.newPlot" in page
    assert '<script src="http' not in page
    for shown in ("tome", "topk", "r=4", "unpatched", "Pareto front", "tokens per layer: 22 18 14"):
        assert shown in page


def test_the_name_of_the_plot_can_be_chosen(results: Path, tmp_path: Path):
    written = plot_results(results, out=tmp_path / "new" / "figure-1.5.png")
    assert [path.name for path in written] == ["figure-1.5.png", "figure-1.5.html"]
    assert all(path.is_file() for path in written)


def test_an_unknown_axis_is_answered_with_the_nearest(results: Path):
    with pytest.raises(ConfigError, match="did you mean 'gmacs'"):
        plot_results(results, x="gmac")


def test_a_folder_without_results_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=str(tmp_path)):
        plot_results(tmp_path)
    Store(tmp_path).write({"key": "k", "model": "m", "data": "d", "method": "tome", "label": "", "error": "OSError: x"})
    with pytest.raises(DataError, match=r"No result has both speedup and top1\. OSError: x"):
        plot_results(tmp_path)


@pytest.mark.parametrize(("x", "best"), [("gmacs", [1, 2, 4]), ("speedup", [4])])
def test_the_front_holds_the_points_that_no_other_beats(x: str, best: list[int]):
    values: list[dict[str, Any]] = [
        {x: 1.0, "top1": 70, "id": 1},
        {x: 2.0, "top1": 80, "id": 2},
        {x: 3.0, "top1": 75, "id": 3},
        {x: 4.0, "top1": 90, "id": 4},
        {x: 4.0, "top1": 85, "id": 5},
    ]
    assert [row["id"] for row in pareto_front(values, AXES[x], AXES["top1"])] == best


def test_a_curve_holds_what_differs_in_numbers_alone():
    labels = ["keep=0.5", "keep=0.25", "positions=original, keep=0.5", "r=[2 4]", "budget=55%", "tower=text"]
    rows = [{"method": "fopru", "label": label} for label in labels]
    assert [curve_of(row) for row in rows] == ["fopru", "fopru", "fopru, positions=original", *["fopru"] * 3]
    learned = {"method": "dpcknn", "label": "weights=vit-fmnist-parts/dpcknn-0.7, keep=0.5"}
    assert curve_of(learned) == "dpcknn, weights=dpcknn-0.7"
    points = [{**row, "model": "m", "data": "d", "key": i, "gmacs": i, "top1": 1.0} for i, row in enumerate(rows)]
    (panel,) = make_panels(points, AXES["gmacs"], AXES["top1"])
    assert {name: [row["key"] for row in curve] for name, curve in panel.curves.items()} == {
        "fopru": [0, 1, 3, 4, 5],
        "fopru, positions=original": [2],
    }
    assert choose_looks(rows).keys() == {UNPATCHED, *panel.curves}


def test_every_method_has_a_look_of_its_own():
    looks = choose_looks([{"method": f"m{i}"} for i in range(30)])
    assert len({(look.colour, look.marker) for look in looks.values()}) == 31


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"gmacs": 1.0, "top1": 90.0, "agreement": 95.0}, [("gmacs", "top1")]),
        ({"gmacs": 1.0, "agreement": 95.0}, [("gmacs", "agreement")]),
        ({"gmacs": 1.0, "exact_match": 90.0, "prefill_speedup": 2.0, "agreement": 95.0},
         [("gmacs", "exact_match"), ("prefill_speedup", "exact_match"), ("gmacs", "agreement")]),
        ({"bits": 8.0, "psnr": 20.0}, [("bits", "psnr")]),
        ({"gmacs": None, "top1": None}, []),
    ],
)  # fmt: skip
def test_the_axes_worth_a_plot_are_those_that_there_are_values_for(row, expected):
    assert fronts([row]) == expected
