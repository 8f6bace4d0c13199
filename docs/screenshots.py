"""Draws docs/images/demo_*.png: the demo's tabs, wide, on a phone, and in the dark. Needs chromium and playwright."""

import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tokred.demo.app import launch

IMAGES = Path(__file__).parent / "images"
WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
BROWSER = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox", "--disable-background-networking"]}
SECOND = 1000
# tab, what is there when it is done, name of the picture
TABS = (
    ("Merge & prune", "x the speed", "merge_prune"),
    ("Ask the picture", "KV cache", "ask"),
    ("Coarse to fine", "bits.", "coarse_to_fine"),
    ("Compare", "random 45%", "compare"),
)


def shoot(page: Page, tab: str, done: str, name: str) -> None:
    """Open a tab, wait for its result, and write a picture of it with few colours."""
    entry = page.get_by_role("tab", name=tab).filter(visible=True)
    if entry.get_attribute("aria-selected") != "true":
        entry.click()
    if tab == "Compare":
        page.get_by_role("button", name="Compare").click()
    page.get_by_text(done).filter(visible=True).first.wait_for()
    page.wait_for_timeout(1.5 * SECOND)
    page.evaluate("window.scrollTo(0, 0)")
    with tempfile.TemporaryDirectory() as folder:
        page.screenshot(path=f"{folder}/page.png", full_page=True)
        with Image.open(f"{folder}/page.png") as file:
            picture = file.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(IMAGES / f"demo_{name}.png", optimize=True)


app = launch(port=7997, wait=False)
with sync_playwright() as player:
    browser = player.chromium.launch(**BROWSER)
    for scheme, size, tabs in (
        ("light", WIDE, TABS), ("light", PHONE, [(*TABS[0][:2], "phone")]), ("dark", WIDE, [(*TABS[2][:2], "dark")]),
    ):  # fmt: skip
        page = browser.new_page(viewport=size, color_scheme=scheme)
        page.set_default_timeout(300 * SECOND)
        page.goto(app.local_url)
        page.get_by_text("x the speed").first.wait_for()
        for tab in tabs:
            shoot(page, *tab)
        page.close()
    browser.close()
app.close()
