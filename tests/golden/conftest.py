"""``pytest tests/golden --golden DIR``: run a folder of golden vectors through the checks of this repository.

The options are declared in ``tests/conftest.py``, so that they are known wherever pytest is called.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from . import cases  # noqa: F401 - registers the checks
from .case import OWN, collect


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Other vectors are asked for: leave out the tests of the checks themselves."""
    return True if collection_path.name == "test_checks.py" and config.getoption("golden", default=None) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a vector, called by the name of its file."""
    if "vector" not in metafunc.fixturenames:
        return
    folders = metafunc.config.getoption("golden", default=None) or OWN
    for folder in folders:
        if not folder.exists():
            raise pytest.UsageError(f"--golden {folder}: there is no such folder or file.")
    found = collect(folders)
    if not found:
        raise pytest.UsageError(f"No vectors (*.safetensors) in {', '.join(map(str, folders))}.")
    times = Counter(case.stem for case in found)
    ids = [case.stem if times[case.stem] == 1 else f"{case.path.parent.name}/{case.stem}" for case in found]
    metafunc.parametrize("vector", found, ids=ids)


_unknown: list[str] = []
_unread: dict[str, list[str]] = {}


@pytest.fixture
def report_unknown():
    """Remember a file that no check knows."""
    return _unknown.append


@pytest.fixture
def report_unread():
    """Remember tensors that no check looked at."""
    return _unread.__setitem__


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was not checked."""
    if _unknown or _unread:
        terminalreporter.section("golden vectors")
    for reason in sorted(_unknown):
        terminalreporter.write_line(f"not checked: {reason}")
    for name, tensors in sorted(_unread.items()):
        terminalreporter.write_line(f"checked in part: {name}: nothing looked at {', '.join(tensors)}")
