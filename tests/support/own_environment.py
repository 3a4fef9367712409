"""Environments of their own for what cannot share the tests': kept in the cache folder.

Where packages cannot be had (no network) the test is skipped; with ``SEGSERVE_TEST_NO_SKIP`` set,
as in CI, it fails.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import venv
from pathlib import Path

import pytest

from serving.cache import cache_folder


def unavailable(reason: str) -> None:
    """Skips the test, or fails it where nothing may be skipped."""
    if os.environ.get("SEGSERVE_TEST_NO_SKIP"):
        pytest.fail(reason)
    pytest.skip(reason)


def make_environment(name: str, *requirements: str) -> Path:
    """Installs the requirements once; returns the environment's Python."""
    folder = cache_folder() / "environments" / name
    folder.mkdir(parents=True, exist_ok=True)
    python, done = folder / "env" / "bin" / "python", folder / "done"
    wanted = "\n".join(requirements)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != wanted:
            venv.create(folder / "env", with_pip=True, clear=True)
            command = [python, "-m", "pip", "install", "--quiet", "--no-deps", *requirements]
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
            if finished.returncode:
                unavailable(f"cannot install {name}: {finished.stderr.strip()[-300:]}")
            done.write_text(wanted)
    return python
