"""Keep the reports of other libraries off the screen, which is ours while something is learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tokred.extra import need


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


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars of transformers inside the block."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
