"""Options of all tests: complete matrices (marked ``full``, left out by default) and other golden vectors."""

from __future__ import annotations

import os
from pathlib import Path

# before Triton is imported: without a GPU its kernels run in Python, when a test asks for them
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    """What takes too long for every commit, and golden vectors of others."""
    parser.addoption("--full", action="store_true", help="run the complete matrices too (marker 'full')")
    golden = parser.getgroup("golden vectors")
    golden.addoption(
        "--golden",
        action="append",
        type=Path,
        metavar="DIR",
        help="a folder (or file) of vectors of the format golden-v1, instead of those in tests/golden; may be repeated",
    )
    golden.addoption("--golden-strict", action="store_true", help="fail on vectors that no check knows")


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker."""
    config.addinivalue_line("markers", "full: part of a complete matrix; runs with --full or -m full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the complete matrices out unless they were asked for."""
    if config.getoption("--full") or "full" in config.getoption("-m"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test that fails, fails again."""
    torch.manual_seed(0)
