"""Documentation is true: code blocks run, docstring examples give what they say, links lead somewhere."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import tokred

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# plug-ins of tools that need not be installed
PLUGINS = {"tokred.integrations.lmms_eval"}
MODULES = sorted({m.name for m in pkgutil.walk_packages(tokred.__path__, "tokred.")} - PLUGINS)


def python_blocks():
    for page in PAGES:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)):
            yield pytest.param(code, id=f"{page.name}-{number}")


@pytest.mark.parametrize("code", list(python_blocks()))
def test_code_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {"tokred": tokred})


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_give_what_they_say(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_some_docstrings_have_examples():
    finder = doctest.DocTestFinder()
    assert sum(bool(t.examples) for name in MODULES for t in finder.find(importlib.import_module(name))) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", sorted(tokred.methods(None)))
def test_every_method_is_documented(name):
    assert f"`{name}`" in (ROOT / "docs" / "methods.md").read_text()
    assert f"`{name}`" in (ROOT / "README.md").read_text()


def test_every_public_name_exists_and_has_a_docstring():
    for name in tokred.__all__:
        assert getattr(tokred, name).__doc__, name
