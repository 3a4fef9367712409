"""A folder beside what is written, which is gone afterwards, however the writing ends.

It is locked while its process lives. So what a process left that was killed outright is told from
what another one is writing now, and the next export clears it away.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_PREFIX = ".export-"


@contextmanager
def folder_aside(repository: Path) -> Iterator[Path]:
    """An empty folder in ``repository``, on the same file system.

    SIGTERM ends the process with its usual code, but not before the folder is gone.
    """
    _clear_abandoned(repository)
    aside = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=repository))
    lock = os.open(aside, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _termination_as_exit():
            yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(lock)


def _clear_abandoned(repository: Path) -> None:
    for aside in repository.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # no folder, or gone by now
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            os.close(lock)


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Has SIGTERM raise SystemExit, where a program does not handle it in a way of its own."""
    default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
