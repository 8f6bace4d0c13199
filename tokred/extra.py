"""Packages that only parts of tokred need, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from tokred.errors import TokredError


def need(module: str, extra: str = "sweep", purpose: str = "Sweeps and searches need") -> Any:
    """Import a module of an extra of the package.

    Args:
        module: its dotted name.
        extra: what brings it.
        purpose: the beginning of the complaint.

    Raises:
        TokredError: it is not installed; the message says what to type.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except ImportError as error:
        raise TokredError(
            f"{purpose} {package}, which is not installed ({error}). Type: pip install 'tokred[{extra}]'"
        ) from error
