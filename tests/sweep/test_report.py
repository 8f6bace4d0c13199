import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.test_run import spec_of
from tests.sweep.tiny import write_pictures
from tokred.errors import DataError
from tokred.sweep import Store, read_results, run_sweep, write_report


@pytest.fixture(scope="module")
def results(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    data = write_pictures(folder / "pictures")
    (folder / "pictures" / "a" / "0.png").write_bytes(b"")
    methods = [
        {"method": "tome", "r": {"grid": [2, 4, 8]}},
        {"method": "topk", "keep": {"grid": [0.5, 0.2]}},
        {"method": "tome", "budget": "1 tokens"},
    ]
    run_sweep(spec_of(tiny_model, data, *methods, worst=2), folder / "out")
    return folder / "out"


def test_the_page_is_one_file_that_names_no_other(results: Path, tmp_path: Path):
    page = write_report(results, tmp_path / "report.html").read_text()
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", own)
    for text in ("Pareto front", "Tokens layer by layer", "Realised against ideal", "Failures", "BudgetError"):
        assert text in page
    assert "0.png" in own, "an image that cannot be read is named"


def test_kept_pictures_are_those_whose_class_became_wrong(results: Path):
    rows = read_results(results, predictions=True).to_dicts()
    kept = [row for row in rows if row["worst"]]
    assert kept
    assert all(row["method"] != "unpatched" and row["worst"].startswith(b"\x89PNG") for row in kept)
    for row in kept:
        assert 1 <= len(row["worst_captions"]) <= 2
        for caption in row["worst_captions"]:
            label, taken, before = re.match(
                r"image \d+: (\w), taken for (\w) \(.*\); unpatched: (\w)", caption
            ).groups()
            assert taken not in (label, before)


def test_pictures_do_not_change_the_key_of_a_point_that_keeps_none(tiny_model: str, pictures: str):
    keys = [{point.key for point in spec_of(tiny_model, pictures, **more).points()} for more in ({}, {"worst": 0})]
    assert keys[0] == keys[1]
    assert not keys[0] & {point.key for point in spec_of(tiny_model, pictures, worst=1).points()}


def test_a_report_on_nothing_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds no results"):
        write_report(tmp_path)


@pytest.mark.parametrize("row", [{"status": "failed", "error": "OSError: <b>"}, {"status": "finished"}])
def test_results_without_numbers_make_a_page(tmp_path: Path, row: dict[str, Any]):
    Store(tmp_path).write({"key": "1", "model": "m", "data": "d", "method": "tome", "label": "", **row})
    page = write_report(tmp_path).read_text()
    assert "<b>" not in page.rpartition("</script></head>")[2]


CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_without_network_draws_the_front_and_sorts_the_table(results: Path, tmp_path: Path):
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    page_file = write_report(results, tmp_path / "report.html")
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
        )
        page = browser.new_context(offline=True).new_page()
        page.set_default_timeout(120_000)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(page_file.as_uri())
        assert page.locator("#figure-0 .scatterlayer .trace").count() >= 3
        column = page.locator("#points th", has_text=re.compile("^gmacs$"))
        index = column.evaluate("cell => cell.cellIndex")

        def values() -> list[float]:
            cells = page.locator(f"#points tbody td:nth-child({index + 1})")
            return [float(value) for value in cells.evaluate_all("all => all.map(cell => cell.dataset.value)")]

        column.click()
        assert values() == sorted(values())
        column.click()
        assert values() == sorted(values(), reverse=True)
        with page.expect_download() as download:
            page.locator("#download").click()
        lines = Path(download.value.path()).read_text().splitlines()
        assert len(lines) == 1 + len(values())
        assert '"gmacs"' in lines[0]
        browser.close()
    assert complaints == []
