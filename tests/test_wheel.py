"""The wheel holds what a checkout reads in place: models, configs, and nothing that is not meant to be there."""

import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from tokred.folders import shipped_folder

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Names of the files in a wheel that was just built."""
    folder = tmp_path_factory.mktemp("wheel")
    [path] = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(path) as wheel:
        return set(wheel.namelist())


@pytest.mark.parametrize("folder", ["models", "configs"])
def test_the_wheel_holds_every_shipped_file(names, folder):
    files = [path for path in shipped_folder(folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {f"tokred/_assets/{path.relative_to(ROOT).as_posix()}" for path in files}
    assert len(wanted) > 10
    assert wanted <= names


def test_the_wheel_holds_every_module_and_the_licence(names):
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "tokred").rglob("*.py")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("entry_points.txt") for name in names)


def test_the_wheel_holds_nothing_else(names):
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tokred"}
    assert not [name for name in names if name.endswith((".pyc", ".parquet"))]
