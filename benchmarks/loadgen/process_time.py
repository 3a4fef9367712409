"""CPU time of a server that does not tell it itself, with the processes that it started. Linux."""

from __future__ import annotations

import os
from pathlib import Path


def read_cpu_seconds(pid: int) -> float:
    """User and system time of a process and all that descend from it and still run.

    Raises:
        ProcessLookupError: there is no such process.
    """
    times: dict[int, int] = {}
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            # The name, in parentheses, may hold anything.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # It ended meanwhile.
        parents[int(folder.name)] = int(fields[1])
        # Own time, and that of children that ended and were waited for.
        times[int(folder.name)] = sum(map(int, fields[11:15]))
    if pid not in times:
        raise ProcessLookupError(f"no process {pid}")
    family, found = {pid}, {pid}
    while found:
        found = {child for child, parent in parents.items() if parent in found}
        family |= found
    return sum(times[member] for member in family) / os.sysconf("SC_CLK_TCK")
