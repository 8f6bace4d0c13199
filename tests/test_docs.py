"""Documentation is true: code blocks and commands run, docstring examples give what they say, links lead somewhere."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
import runpy
import shlex
from pathlib import Path

import pytest
import tutorial_pages
import typer

import tokred
from tokred.adapters.base import registry as adapters
from tokred.cli import app
from tokred.cli.knobs import free_options
from tokred.methods.registry import _registry as known_methods
from tokred.sweep import parse_spec
from tokred.sweep.yaml import read_yaml

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CARDS = sorted((ROOT / "models").glob("*/README.md"))
# plug-ins of tools that need not be installed
PLUGINS = {"tokred.integrations.lmms_eval"}
MODULES = sorted({m.name for m in pkgutil.walk_packages(tokred.__path__, "tokred.")} - PLUGINS)
_BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n+)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, language):
    """The blocks of a page that are to run; one that cannot says why: <!-- not run: needs a GPU -->."""
    return [code for reason, kind, code in _BLOCK.findall(page.read_text()) if kind == language and not reason]


def commands():
    """Every command of a console block, without what it prints."""
    for page in [*PAGES, *CARDS]:
        for block in blocks(page, "console"):
            lines = block.replace("\\\n", " ").splitlines()
            marked = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
            for line in marked or lines:
                for command in line.split("  #")[0].split(";"):
                    yield pytest.param(shlex.split(command), id=f"{name_of(page)}: {' '.join(command.split())}"[:90])


@pytest.fixture
def untouched(tmp_path, monkeypatch):
    """What an example registers or writes is gone behind it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(known_methods, "_own", dict(known_methods._own))
    monkeypatch.setattr(adapters.blocks, "_parts", dict(adapters.blocks._parts))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_code_blocks_run_from_the_first_to_the_last(page, untouched):
    names = {"tokred": tokred, "__name__": "page"}
    for number, code in enumerate(blocks(page, "python")):
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.parametrize("path", tutorial_pages.tutorials(), ids=lambda path: path.stem)
def test_tutorials_run(path, untouched):
    runpy.run_path(str(path))


@pytest.mark.parametrize("words", list(commands()))
def test_commands_are_ones_that_exist(words, monkeypatch):
    while "=" in words[0]:  # a variable of the environment
        words = words[1:]
    program, *rest = words
    for word in rest:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file(), word
    if program == "tokred":
        parse(typer.main.get_command(app), "tokred", free_options(rest))
        if "--method" in rest:
            assert rest[rest.index("--method") + 1] in tokred.methods(None)
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), rest[1]
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), rest[0]
    else:
        assert program in ("lmms_eval", "pip"), f"say here how {program!r} is checked"


def parse(command, name, words, parent=None):
    """Read a command line as it would be read, down to its last subcommand, and run nothing."""
    context = command.make_context(name, list(words), parent=parent)
    if hasattr(command, "resolve_command"):  # a group
        rest = [*context._protected_args, *context.args]
        if rest:
            name, subcommand, rest = command.resolve_command(context, rest)
            parse(subcommand, name, rest, context)


def test_a_command_with_a_wrong_option_is_found():
    with pytest.raises(Exception, match="--mehtod"):  # whose class depends on the version of typer
        parse(typer.main.get_command(app), "tokred", ["explain", "vit-fmnist", "--mehtod", "tome"])


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=name_of)
def test_sweeps_on_pages_are_ones_that_would_run(page, tmp_path):
    for code in blocks(page, "yaml"):
        (tmp_path / "sweep.yaml").write_text(code)
        assert parse_spec(read_yaml(tmp_path / "sweep.yaml")).points()


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_give_what_they_say(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_some_docstrings_have_examples():
    finder = doctest.DocTestFinder()
    assert sum(bool(t.examples) for name in MODULES for t in finder.find(importlib.import_module(name))) >= 5


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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
