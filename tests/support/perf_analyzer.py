"""Triton's load generator, installed once: the binary of a wheel, and the libraries it needs."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

from serving.settings import cache_folder
from tests.support.own_environment import make_environment, unavailable

# The last wheel whose binary runs on glibc 2.36.
WHEEL = "tritonclient==2.51.0"
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d*", "libcudart.so.12": "libcudart-*.so.12*"}


def run_perf_analyzer(*arguments: str, table: Path) -> dict[str, str]:
    """One short measurement; the row of its table.

    Where the program or its libraries cannot be had, the test is skipped (in CI, it fails).
    """
    folder = make_environment("perf_analyzer", WHEEL)
    binary = folder / "perf_analyzer"
    if not binary.exists():
        unavailable(f"{WHEEL} holds no perf_analyzer")
    command: list[str | Path] = [
        binary, *arguments, "-f", table,
        "--measurement-mode", "count_windows", "--measurement-request-count", "10",
        "-s", "1000", "-r", "3", "--verbose-csv",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(_link_libraries(folder.parent / "triton_libraries")),
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with table.open() as stream:
        (row,) = csv.DictReader(stream)
    return row


def _link_libraries(folder: Path) -> Path:
    """Under the names that the program asks for; Triton's wheel has them under longer ones."""
    folder.mkdir(exist_ok=True)
    for name, pattern in LIBRARIES.items():
        found = sorted(
            (cache_folder() / "triton").glob(
                f"python3*/env/lib/python3*/site-packages/nvidia_pytriton.libs/{pattern}"
            )
        )
        if not found:
            unavailable(f"{name} is not there; Triton's own environment brings it")
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(found[-1])
    return folder
