"""Installs packages that cannot share our environment into ones of their own, which are cached.

The exact versions of other servers are in ``requirements/``.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.contest.processes import Unavailable
from serving.cache import cache_folder

REQUIREMENTS = Path(__file__).parent / "requirements"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def find_environment(name: str) -> Path:
    """Returns the ``bin`` folder of the environment of ``requirements/NAME.txt``; installs it once.

    Raises:
        Unavailable: the packages cannot be installed here.
    """
    return make_environment(name, *_read_requirements(name))


def has_environment(name: str) -> bool:
    """Returns whether the environment of ``requirements/NAME.txt`` is installed."""
    done = _folder(name) / "done"
    return done.exists() and done.read_text() == _wanted(_read_requirements(name))


def make_environment(name: str, *requirements: str) -> Path:
    """Returns the ``bin`` folder of an environment with just these packages; installs them once.

    Raises:
        Unavailable: they cannot be installed here.
    """
    folder = _folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    binaries, done = folder / "env" / "bin", folder / "done"
    wanted = _wanted(requirements)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != wanted:
            venv.create(folder / "env", with_pip=True, clear=True)
            pip: list[str | Path] = [
                binaries / "python",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
            ]
            command = [*pip, "--disable-pip-version-check", *requirements]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                why = ran.stderr.strip().splitlines()[-1:] or ["pip failed"]
                raise Unavailable(f"{name} cannot be installed: {why[0]}")
            done.write_text(wanted)
    return binaries


def _read_requirements(name: str) -> list[str]:
    lines = (REQUIREMENTS / f"{name}.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _wanted(requirements: list[str] | tuple[str, ...]) -> str:
    return "\n".join((PYTHON, *requirements))


def _folder(name: str) -> Path:
    return cache_folder() / "environments" / name
