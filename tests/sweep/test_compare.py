from pathlib import Path
from typing import Any

import pytest

from tokred.cli import main
from tokred.errors import DataError
from tokred.sweep import Store, compare_results
from tokred.sweep.compare import mcnemar
from tokred.sweep.predictions import pack_bits

IMAGES = 400
CONFIG = '{"split": "test", "images": null}'


def run(folder: Path, right: int | list[bool] | None = None, key: str = "1", **more: Any) -> Path:
    """One point with so many right images, the first ones, or with those."""
    if isinstance(right, int):
        right = [index < right for index in range(IMAGES)]
    quality = {} if right is None else {"top1": 100 * sum(right) / IMAGES, "right": pack_bits(right)}
    place = {"model": "m", "data": "d", "method": "tome", "label": f"r={key}", "seed": 0, "config": CONFIG}
    Store(folder).write({"key": key, "status": "finished", "images": IMAGES, **place, **quality, **more})
    return folder


def test_the_same_images_are_compared_one_by_one(tmp_path: Path):
    [found] = compare_results(run(tmp_path / "a", 300), run(tmp_path / "b", 290))
    assert (found.test, found.is_real) == ("McNemar", True)
    assert found.p == pytest.approx(2 * 0.5**10)


def test_as_many_right_images_that_are_others_are_no_difference(tmp_path: Path):
    swapped = [100 <= index < 400 for index in range(IMAGES)]
    [found] = compare_results(run(tmp_path / "a", 300), run(tmp_path / "b", swapped))
    assert (found.p, found.is_real) == (1.0, False)


@pytest.mark.parametrize("change", [{"right": None}, {"seed": 1}, {"config": '{"split": "train", "images": null}'}])
def test_other_images_are_compared_as_two_shares(tmp_path: Path, change: dict[str, Any]):
    b = run(tmp_path / "b")
    run(b, 290)
    row = Store(b).read()["1"]
    Store(b).write({**row, **change})
    [found] = compare_results(run(tmp_path / "a", 300), b)
    assert (found.test, found.is_real) == ("proportions", False)


def test_many_tests_are_paid_for(tmp_path: Path):
    for key in range(20):
        run(tmp_path / "a", 300, str(key))
        run(tmp_path / "b", 293 if key == 0 else 300, str(key))
    found = {one.point[3]: one for one in compare_results(tmp_path / "a", tmp_path / "b")}
    assert mcnemar(7, 0) < 0.05
    assert found["r=0"].p == pytest.approx(20 * mcnemar(7, 0))
    assert not found["r=0"].is_real


@pytest.mark.parametrize(("middle", "is_real"), [((1.50, 1.45, 1.55), True), ((1.30, 1.15, 1.45), False)])
def test_a_speed_up_differs_where_the_middle_halves_are_apart(
    tmp_path: Path, middle: tuple[float, float, float], is_real: bool
):
    columns = ("speedup", "speedup_low", "speedup_high")
    a = run(tmp_path / "a", **dict(zip(columns, (1.2, 1.1, 1.3), strict=True)))
    b = run(tmp_path / "b", **dict(zip(columns, middle, strict=True)))
    [found] = compare_results(a, b)
    assert (found.test, found.p, found.is_real) == ("quartiles", None, is_real)


def test_runs_without_a_common_point_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="share no finished point"):
        compare_results(run(tmp_path / "a", 3, "1"), run(tmp_path / "b", 3, "2"))


def test_the_command_line_tells_the_real_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a, b = run(tmp_path / "a", 300), run(tmp_path / "b", 290)
    assert main(["compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "McNemar" in out
    assert "-2.50" in out
    assert "1 of 1 differences are outside the noise" in out
