"""A lock between processes that says who holds it, so that a dead one does not hold it for ever."""

from __future__ import annotations

import logging
import os
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from tokred.learn.process import is_alive, me, show
from tokred.sweep.store import StorageError

log = logging.getLogger(__name__)


class Lock:
    """A symbolic link whose target names its owner: made in one step, on network disks too.

    It takes over, with a warning, what a dead process of this machine left, and what nobody here can judge once it has
    not changed for ``grace`` seconds. It has the two methods that Optuna wants of the lock of a journal.

    Args:
        path: of the lock.
        patience: seconds to wait for a process that runs.
        grace: seconds to wait for one that cannot be looked at: on another machine, or a lock of another kind.
    """

    def __init__(self, path: str | Path, *, patience: float = 60.0, grace: float = 30.0) -> None:
        self.path, self.patience, self.grace = Path(path), patience, grace
        self._name = f"{me()}:{id(self):x}"

    def acquire(self) -> bool:
        """Wait for the lock, and take it.

        Raises:
            StorageError: a process that runs keeps it too long, or the folder cannot be written.
        """
        started = unchanged = time.monotonic()
        pause, seen = 0.001, None
        while True:
            try:
                os.symlink(self._name, self.path)
                return True
            except FileExistsError:
                pass
            except OSError as error:
                raise StorageError(f"{self.path}: the lock cannot be made ({error.strerror}).") from error
            held = _look(self.path)
            if held is None:
                continue
            if held != seen:
                seen, unchanged = held, time.monotonic()
            owner, now = held[0], time.monotonic()
            alive = False if owner == self._name else is_alive(owner)  # an interrupt can leave our own
            if alive is False or (alive is None and now - unchanged > self.grace):
                self._take_away(owner)
                continue
            if now - started > self.patience:
                raise StorageError(
                    f"{self.path} has been held for {now - started:.0f} s by {show(owner)}"
                    f"{', which still runs' if alive else ''}. Wait for it or stop it; if it is gone, remove the file."
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def release(self) -> None:
        """Give the lock back; nothing happens if another process has taken it over."""
        held = _look(self.path)
        if held is not None and held[0] == self._name:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _take_away(self, owner: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        try:
            os.rename(self.path, aside)
        except OSError:
            return  # somebody else was faster
        held = _look(aside)
        if held is not None and held[0] != owner:  # what we took was no longer the one that we judged
            os.rename(aside, self.path)
            return
        aside.unlink(missing_ok=True)
        if owner != self._name:
            log.warning("%s was left behind by %s; it has been removed.", self.path, show(owner))


def _look(path: Path) -> tuple[str, int] | None:
    """The owner of a lock, empty if it does not say, and the time of its making; ``None`` if there is no lock."""
    try:
        made = os.lstat(path).st_mtime_ns
    except OSError:
        return None
    try:
        return os.readlink(path), made
    except FileNotFoundError:
        return None
    except OSError:
        return "", made
