"""Who trains into a folder: a lock that ends with the process, however that ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "run.lock"


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Holds ``folder`` for this process.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process trains into {folder}; wait for it, or choose another --checkname"
            ) from None
        yield


def is_held(folder: Path) -> bool:
    """Whether a process trains into ``folder`` now."""
    path = folder / NAME
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
