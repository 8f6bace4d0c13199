"""Where the shipped files lie: next to the package in a checkout, inside it in an installed wheel."""

from pathlib import Path

from tokred.errors import DataError

_PACKAGE = Path(__file__).resolve().parent


def shipped_folder(name: str) -> Path:
    """Return the folder of shipped files called ``name`` ("models", "configs", "configs/schedules", ...).

    Raises:
        DataError: the installation does not carry it.
    """
    for root in (_PACKAGE.parent, _PACKAGE / "_assets"):
        if (root / name).is_dir() and (root is not _PACKAGE.parent or (root / "pyproject.toml").is_file()):
            return root / name
    raise DataError(f"This installation of tokred carries no folder {name!r}. Install the wheel or work in a checkout.")
