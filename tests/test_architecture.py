"""The walls of the house: imports run downwards, papers and families do not know each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "tokred"
FACADE = "tokred"

# from the roof to the cellar; a floor may use itself and everything below. See docs/design.md, "Folders and floors".
FLOORS = (
    {"cli"},
    {"demo"},
    {"learn"},
    {"sweep", "bench"},
    {"train"},
    {"evaluate", "integrations"},
    {FACADE},
    {"patching"},
    {"multimodal", "multimodal_cost", "nn", "assets", "multimodal_assets", "tokenizer_assets", "clip_assets"},
    {"adapters"},
    {"methods"},
    {"tokenizers"},
    {"data"},
    {"view", "feature_view", "decoder_view", "trace", "visual_trace", "state", "schedule", "cost", "shape", "layout"},
    {"token_map", "ops", "viz"},
    {"folders", "model_folder", "errors", "extra", "handle"},
)
# what makes a file one of many of its kind: such files must not know each other
KINDS = {"methods": "register", "adapters": "add", "tokenizers": "register"}

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted name of a module."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def room(module: str) -> str:
    """The part of the package that a module belongs to: its first name behind ``tokred``."""
    return module.split(".")[1] if "." in module else FACADE


def floor(module: str) -> int:
    """How far below the roof a module lies."""
    return next(level for level, rooms in enumerate(FLOORS) if room(module) in rooms)


def imports(module: str) -> Iterator[str]:
    """The modules of the package that a module imports, wherever in the file."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == FACADE)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide the floor"
            if (node.module or "").split(".")[0] == FACADE:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in MODULES else str(node.module)


def is_one_of_many(module: str) -> bool:
    """Whether a module registers a method, a family of models or a tokenizer."""
    verb = KINDS[room(module)]
    tree = ast.parse(MODULES[module].read_text())
    calls = [node.value for node in tree.body if isinstance(node, ast.Expr)]
    calls += [mark for node in tree.body if isinstance(node, ast.ClassDef) for mark in node.decorator_list]
    names = [call.func for call in calls if isinstance(call, ast.Call)]
    return any((n.id if isinstance(n, ast.Name) else getattr(n, "attr", "")) == verb for n in names)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_floor(module):
    assert any(room(module) in rooms for rooms in FLOORS), f"{module}: write into FLOORS where it belongs"


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    upwards = [used for used in imports(module) if floor(used) < floor(module)]
    assert not upwards, f"{module} imports from above: {upwards}"


@pytest.mark.parametrize("folder", [kind for kind in KINDS if (PACKAGE / kind).is_dir()])
def test_papers_and_families_do_not_import_each_other(folder):
    siblings = {module for module in MODULES if room(module) == folder and is_one_of_many(module)}
    assert len(siblings) > 1, f"nothing in {folder} was recognised"
    sideways = {module: sorted(siblings & set(imports(module))) for module in sorted(siblings)}
    assert not any(sideways.values()), f"sideways imports: { {m: s for m, s in sideways.items() if s} }"


def test_imports_have_no_circle():
    graph = {module: set(imports(module)) - {module} for module in MODULES}
    done: set[str] = set()
    while ready := {module for module in graph.keys() - done if graph[module] <= done}:
        done |= ready
    assert done == set(graph), f"modules that import each other in a circle: {sorted(set(graph) - done)}"


@pytest.mark.parametrize("module", MODULES)
def test_the_library_never_prints(module):
    calls = [n for n in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(n, ast.Call)]
    lines = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not lines, f"{module} prints in lines {lines}"


def test_no_file_is_called_utils():
    drawers = [str(path) for path in FILES if path.stem.strip("_") in {"utils", "util", "helpers", "misc", "common"}]
    assert not drawers, f"name files after what they hold: {drawers}"


def test_the_facade_only_names_things():
    tree = ast.parse(MODULES[FACADE].read_text())
    allowed = (ast.ImportFrom, ast.Import, ast.Assign, ast.Expr)
    others = [node for node in tree.body if not isinstance(node, allowed)]
    assert all(map(_is_lazy, others)), "tokred/__init__.py defines something"


def _is_lazy(node: ast.AST) -> bool:
    """Names for type checkers, and the function that imports them when they are asked for."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef) and node.name == "__getattr__"
