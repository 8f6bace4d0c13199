import logging
import os
from pathlib import Path

import pytest

from tests.learn.dead import dead_process
from tokred.learn.lock import Lock
from tokred.learn.process import me
from tokred.sweep import StorageError


def test_a_lock_is_held_until_it_is_released(tmp_path: Path):
    first, second = Lock(tmp_path / "x.lock"), Lock(tmp_path / "x.lock", patience=0)
    with first:
        with pytest.raises(StorageError, match=r"x\.lock has been held .* by process .*, which still runs"):
            second.acquire()
        assert os.path.lexists(first.path)
    assert not os.path.lexists(first.path)
    with second:
        pass


def test_what_a_dead_process_left_is_taken_over_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "x.lock").symlink_to(f"{dead_process()}:1")
    with caplog.at_level(logging.WARNING), Lock(tmp_path / "x.lock", patience=0):
        pass
    assert "was left behind by process" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_here_can_judge_is_taken_over_after_the_grace_period(tmp_path: Path):
    path = tmp_path / "x.lock"
    path.symlink_to("another-machine:1:1")
    with pytest.raises(StorageError, match=r"process 1 on another-machine.*remove the file"):
        Lock(path, patience=0).acquire()
    with Lock(path, grace=0):
        pass


def test_a_lock_of_another_kind_is_respected_too(tmp_path: Path):
    path = tmp_path / "x.lock"
    path.write_text("")
    with pytest.raises(StorageError, match="an unknown process"):
        Lock(path, patience=0).acquire()
    with Lock(path, grace=0):
        pass


def test_a_lock_that_an_interrupt_left_in_this_process_does_not_stop_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    lock = Lock(tmp_path / "x.lock", patience=0)
    lock.acquire()
    with lock:
        pass
    assert not caplog.records


def test_a_lock_that_was_taken_over_is_not_released_twice(tmp_path: Path):
    lock = Lock(tmp_path / "x.lock")
    lock.acquire()
    lock.path.unlink()
    lock.path.symlink_to(f"{me()}:other")
    lock.release()
    assert os.path.lexists(lock.path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    with pytest.raises(StorageError, match="nowhere"):
        Lock(tmp_path / "nowhere" / "x.lock").acquire()
