"""CPU time of a server that does not tell it itself, with the processes that it started. Linux."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def read_cpu_seconds(pid: int) -> float:
    """User and system time of a process and all that descend from it and still run.

    Raises:
        ProcessLookupError: there is no such process.
    """
    ticks = 0
    for member in find_family([pid]):
        try:
            # The name, in parentheses, may hold anything.
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            if member == pid:
                raise ProcessLookupError(f"no process {pid}") from None
            continue  # It ended meanwhile.
        # Own time, and that of children that ended and were waited for.
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def find_family(pids: Sequence[int]) -> list[int]:
    """The processes and all that descend from them and still run."""
    family = list(pids)
    for pid in family:  # grows while it is walked
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):
                family += [int(child) for child in children.read_text().split()]
    return family
