"""Packages that only sweeps and searches need, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from tokred.errors import TokredError


def need(module: str, extra: str = "sweep") -> Any:
    """Import a module of an extra of the package.

    Raises:
        TokredError: it is not installed; the message says what to type.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise TokredError(
            f"Sweeps and searches need {package}, which is not installed ({error}). Type: pip install 'tokred[{extra}]'"
        ) from error
