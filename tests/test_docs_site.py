"""What the site makes: pages of methods and tutorials, the picture of the architecture; and no number of its own."""

import re
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import docstrings
import method_curves
import method_pages
import polars as pl
import pytest
import tutorial_pages

import tokred
from tests.test_architecture import FLOORS, MODULES, imports, room

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
METHODS = sorted(tokred.methods(None))
_TABLES = re.compile(r"<!-- table: \w+ -->.*?<!-- end -->", re.DOTALL)
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
# what is measured: a factor, a time, a rate, a share of answers
_UNITS = r"x\b| times| ms\b| dB\b| images/s| GMACs| (?:%|points) (?:better|worse|of the answers)"
_MEASURED = re.compile(rf"\b\d+(?:\.\d+)?(?:{_UNITS})")
# pages whose numbers have tests of their own (tests/test_readme_numbers.py)
COMPARED = {"benchmarks.md", "methods.md"}


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_a_method_says_what_it_means(name):
    method = tokred.methods(None)[name]
    silent = {field.name for field in fields(method)} - set(docstrings.attributes(method))
    assert not silent, f"{method.__name__}: no word on {sorted(silent)} under Attributes"


@pytest.mark.parametrize("name", METHODS)
def test_the_page_of_a_method_holds_all_that_is_known_of_it(name):
    method, page = tokred.methods(None)[name], method_pages.method_page(name)
    assert page.startswith(f"# {method.__name__}\n")
    assert ":class:" not in page
    assert getattr(tokred, method.__name__) is method, "the page says tokred.patch(model, tokred.NAME())"
    assert all(f"| `{field.name}` |" in page for field in fields(method))
    rows = [row[1:] for row in method_pages.deviations() if method_pages.is_about(row, name, method)]
    assert all(" | ".join(row) in page for row in rows)
    assert ("Not measured" in page) == (not list(method_curves.measured(name)))


def test_every_deviation_stands_on_the_page_of_a_method_or_is_about_all_of_them():
    everywhere = {"tokens behind the end of a text", "no class token, with or without registers"}
    known = tokred.methods(None).items()
    lost = {row[0] for row in method_pages.deviations() if not any(method_pages.is_about(row, *one) for one in known)}
    assert lost == everywhere


def test_the_numbers_of_a_page_are_those_of_the_file():
    qualities = {"quickstart.parquet": "top1", "retrieval.parquet": "text_to_image_r1"}
    measured = dict(method_curves.measured("pitome"))
    assert qualities.keys() <= measured.keys()
    for file, quality in qualities.items():
        rows = pl.read_parquet(DOCS / "results" / file).filter(pl.col("method") == "pitome")
        table = method_curves.table(measured[file])
        for row in rows.iter_rows(named=True):
            cells = f"{row['gmacs']:.3f} | {row[quality]:.1f} | {row['agreement']:.1f} | {row['speedup']:.2f}x"
            assert f"| `{row['model']}` | {row['label']} | {cells} |" in table
    assert table.count("unpatched") == rows["model"].n_unique()


@pytest.mark.parametrize("name", tokred.__all__)
def test_every_public_name_is_in_the_reference_or_has_a_page(name):
    entry = rf"^::: tokred(\.\w+)*\.({name}|{name}\.\w+)$"
    errors = {error for error in dir(tokred.errors) if error.endswith("Error")}  # listed as a module
    methods = {method.__name__ for method in tokred.methods(None).values()}
    text = (DOCS / "reference.md").read_text()
    assert name in errors | methods or re.search(entry, text, flags=re.MULTILINE), f"add ::: tokred.{name} to it"


def test_a_picture_of_what_was_measured_is_drawn():
    assert ElementTree.fromstring(method_curves.picture("quickstart.parquet", "tome")).tag.endswith("svg")


def test_a_tutorial_becomes_text_and_code(tmp_path):
    file = tmp_path / "1_x.py"
    file.write_text("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1  # %% no cell\n")
    page = tutorial_pages.tutorial_page(file)
    assert page.startswith("# Title\n\nText.\n\n```python\nx = 1  # %% no cell\n```")


def test_the_picture_of_the_architecture_shows_every_part_above_all_that_it_imports():
    picture = ElementTree.parse(DOCS / "images" / "architecture.svg")
    svg = "{http://www.w3.org/2000/svg}"
    height = {group.get("id"): float(group.find(f"{svg}rect").get("y")) for group in picture.iter(f"{svg}g")}
    assert set(height) == set().union(*FLOORS), "run: python -m docs.architecture"
    for module in MODULES:
        for used in imports(module):
            above, below = room(module), room(used)
            assert height[above] <= height[below] or any({above, below} <= floor for floor in FLOORS), (module, used)


@pytest.mark.parametrize(
    "path",
    [p for p in (*sorted(DOCS.rglob("*.md")), *tutorial_pages.tutorials()) if p.name not in COMPARED],
    ids=lambda path: path.name,
)
def test_measured_numbers_stand_only_where_a_results_file_gives_them(path):
    text = _CODE.sub("", _TABLES.sub("", path.read_text())) if path.suffix == ".md" else text_of(path)
    assert not _MEASURED.findall(text)


def text_of(path):
    return _CODE.sub("", re.sub(r"```python\n.*?```", "", tutorial_pages.tutorial_page(path), flags=re.DOTALL))


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_tables_of_measured_numbers_are_made_from_files(page):
    text = _TABLES.sub("", page.read_text())
    tables = re.findall(r"^\|(.*)\|\n\|[-:| ]+\|\n((?:\|.*\|\n)+)", text, flags=re.MULTILINE)
    measured = [head.strip() for head, body in tables if re.search(r"(\| *\d+\.\d+x? *){2}\|", body)]
    compared = "method | budget | vit-fmnist top-1 %"  # with the file by tests/test_readme_numbers.py
    assert [head for head in measured if not head.startswith(compared)] == []
