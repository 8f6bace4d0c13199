"""Keep Optuna's own reports off the screen while a search runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tokred.sweep.extra import need


@contextmanager
def quiet() -> Iterator[None]:
    """Only warnings of Optuna inside the block."""
    logging = need("optuna").logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
