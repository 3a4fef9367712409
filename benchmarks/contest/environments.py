"""Environments of their own for servers whose packages cannot share this project's.

They are kept under ``build/environments`` of the checkout, which git ignores. Exact versions stand
in ``requirements/``.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.contest.processes import Unavailable

REQUIREMENTS = Path(__file__).parent / "requirements"
ENVIRONMENTS = Path(__file__).parents[2] / "build" / "environments"


def find_environment(name: str) -> Path:
    """The ``bin`` folder of an environment with ``requirements/NAME.txt``; installs it once.

    Raises:
        Unavailable: the packages cannot be installed here.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(version.encode() + requirements.read_bytes()).hexdigest()[:8]
    folder = ENVIRONMENTS / f"{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    binaries, done = folder / "env" / "bin", folder / "done"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            venv.create(folder / "env", with_pip=True, clear=True)
            pip = [binaries / "python", "-m", "pip", "install", "--quiet", "--no-deps"]
            command = [*pip, "--disable-pip-version-check", "-r", requirements]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                why = ran.stderr.strip().splitlines()[-1:] or ["pip failed"]
                raise Unavailable(f"{name} cannot be installed: {why[0]}")
            done.touch()
    return binaries
