"""The page in a browser: every tab does its job, refusals are sentences, nothing is fetched, nothing complains."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from PIL import Image

from tokred.demo.app import launch
from tokred.errors import ConfigError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser here; try: apt-get install chromium")
PATIENCE = 120_000  # milliseconds; a busy machine is no failure
TABS = ("Merge & prune", "Ask the picture", "Coarse to fine", "Compare")
NAMELESS = """() => [...document.querySelectorAll('input, textarea, select, button')]
    .filter(e => e.checkVisibility() && e.type !== 'file')
    .filter(e => !(e.labels?.length || e.innerText?.trim() || e.ariaLabel || e.title || e.closest('label')
                   || e.getAttribute('aria-labelledby') || e.querySelector('img')?.alt))
    .map(e => e.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = launch(port=port, wait=False)
    with pytest.raises(ConfigError, match=rf"cannot be shown at 127\.0\.0\.1, port {port} .*Try another --port"):
        launch(port=port, wait=False)
    yield app.local_url
    app.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Any]:
    """Opens the page; in the end nothing has complained, and nothing was asked of another machine."""
    complaints: list[str] = []
    pages = []

    def open_page(tab: str = TABS[0], width: int = 1400, **options: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: None if _is_local(asked.url, address) else complaints.append(asked.url))
        page.goto(address)
        see(page, re.compile("of 197 tokens"))
        if tab != TABS[0]:
            page.get_by_role("tab", name=tab).click()
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not complaints


def _is_local(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def see(page: Any, text: Any) -> Any:
    found = page.get_by_text(text).filter(visible=True).first
    found.wait_for()
    return found


def upload(page: Any, *paths: Path) -> None:
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(list(paths))


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label, exact=True).filter(visible=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def press(page: Any, slider: str, key: str, times: int) -> None:
    """By keyboard alone."""
    handle = page.get_by_role("slider", name=re.compile(slider)).filter(visible=True)
    handle.focus()
    for _ in range(times):
        handle.press(key)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.radial_gradient("L").convert("RGB").resize((90, 60)).save(path)
    return path


def test_merge_and_prune_shows_a_result_at_once_and_follows_every_control(visit, photo):
    page = visit()
    see(page, "17 of 197 tokens")
    see(page, re.compile("x the speed"))  # measured without being asked to
    press(page, "Behind block", "ArrowLeft", 8)
    see(page, "197 of 197 tokens")
    choose(page, "Method", "topk")
    see(page, "23 of 197 tokens")
    press(page, "Share of the MACs", "ArrowRight", 9)
    see(page, "197 of 197 tokens")
    choose(page, "Model", "vit-fmnist-reg")
    see(page, "200 of 200 tokens")
    upload(page, photo)
    page.get_by_role("button", name="Measure the speed").click()
    see(page, re.compile("x the speed"))


@pytest.mark.parametrize("tab", [TABS[0], TABS[1], TABS[3]])
def test_a_wrong_upload_shows_its_sentence(visit, tmp_path, tab):
    wrong = tmp_path / "notes.png"
    wrong.write_text("These are notes, not a picture.")
    page = visit(tab)
    upload(page, wrong)
    see(page, re.compile("notes.png cannot be read as a picture"))


def test_a_budget_out_of_reach_shows_its_sentence(visit):
    page = visit()
    see(page, "17 of 197 tokens")
    choose(page, "Method", "zerotprune")
    see(page, re.compile(r"\b\d of 197 tokens"))  # the new method has been drawn: what comes now is not overwritten
    press(page, "Share of the MACs", "Home", 1)
    see(page, re.compile("30% is out of reach: the strongest schedule of this method needs"))


def test_ask_the_picture_answers_twice_and_says_what_it_took(visit, photo):
    page = visit("Ask the picture")
    see(page, "KV cache behind the prompt")
    answers = [page.get_by_label(f"Answer from {which} tokens") for which in ("all", "the kept")]
    assert [answer.input_value() for answer in answers] == ["circle", "circle"]
    see(page, re.compile("visual tokens are left in all 6 layers"))
    upload(page, photo, photo)
    see(page, re.compile("of 512"))


def test_coarse_to_fine_draws_any_k_and_suggests_one(visit):
    page = visit("Coarse to fine")
    see(page, re.compile("For an error of at most 0.1 this picture needs"))
    press(page, "for k:", "Home", 1)
    see(page, "1 tokens, 16 bits.")
    press(page, "for k:", "ArrowRight", 2)
    see(page, "3 tokens, 48 bits.")
    see(page, "32 tokens")
    press(page, "for Suggest", "Home", 1)
    see(page, re.compile("Not even all 32 tokens"))
    see(page, "32 tokens, 511 bits.")
    choose(page, "Tokenizer", "flextok-fmnist")
    see(page, "16 tokens")


def test_compare_measures_own_pictures_and_gives_the_files(visit, photo, tmp_path):
    page = visit("Compare")
    upload(page, photo, photo)
    see(page, "On your 2 pictures")
    page.get_by_label("65%").uncheck()
    page.get_by_role("button", name="Compare").click()
    see(page, "random 45%")
    files = {}
    for title in ("Results (Parquet)", "Sweep (YAML)"):
        with page.expect_download() as started:
            page.get_by_role("link", name=title).or_(page.get_by_role("button", name=title)).first.click()
        files[title] = tmp_path / started.value.suggested_filename
        started.value.save_as(files[title])
    rows = pl.read_parquet(files["Results (Parquet)"])
    assert sorted(rows["method"]) == ["pitome", "random", "tome", "topk", "unpatched"]
    assert yaml.safe_load(files["Sweep (YAML)"].read_text())["models"] == ["vit-fmnist"]


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1400, "dark")])
def test_every_tab_fits_and_every_control_has_a_name(visit, width, scheme):
    page = visit(width=width, color_scheme=scheme)
    for tab in TABS:
        entry = page.get_by_role("tab", name=tab).filter(visible=True)
        if not entry.count():  # a phone shows what does not fit in a menu
            page.get_by_label("More tabs").click()
            entry = page.get_by_text(tab, exact=True).filter(visible=True).last  # gradio measures on a copy before it
        entry.click()
        page.locator("[role=tabpanel]:visible").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(NAMELESS) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert (brightness < 100) == (scheme == "dark")
