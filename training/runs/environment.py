"""The environment of a run: Python, packages, processors, threads, revision; no names of people."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path

THREAD_SETTINGS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MXNET_CPU_WORKER_NTHREADS",
)


@dataclass(frozen=True)
class RunEnvironment:
    """The environment of one start of a run.

    Attributes:
        started: UTC, ISO 8601.
        cores: those that the process may use.
        gpus: name, memory and driver of each, from ``nvidia-smi``.
        threads: settings of the process, by variable; what is not set is left out.
        git_revision: of the project's checkout; None without one.
        git_dirty: whether a tracked file differed from that revision.
    """

    started: str
    python: str
    platform: str
    cpu: str
    cores: int
    gpus: tuple[str, ...]
    threads: Mapping[str, str]
    packages: Mapping[str, str]
    git_revision: str | None
    git_dirty: bool | None


def read_environment() -> RunEnvironment:
    """Returns the environment of this process."""
    revision, dirty = _read_revision(Path(__file__).resolve().parent)
    return RunEnvironment(
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        gpus=_gpu_names(),
        threads={name: os.environ[name] for name in THREAD_SETTINGS if name in os.environ},
        packages=_packages(),
        git_revision=revision,
        git_dirty=dirty,
    )


def _packages() -> dict[str, str]:
    found = {package.name: package.version for package in distributions()}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _cpu_name() -> str:
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _gpu_names() -> tuple[str, ...]:
    listed = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version",
                   "--format=csv,noheader")  # fmt: skip
    return tuple((listed or "").splitlines())


def _read_revision(folder: Path) -> tuple[str | None, bool | None]:
    """Returns revision and changes if git tracks this code; another project's is not ours."""
    git = ("git", "-C", str(folder))
    if _output(*git, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None
    changed = _output(*git, "status", "--porcelain", "--untracked-files=no")
    return _output(*git, "rev-parse", "HEAD"), None if changed is None else bool(changed)


def _output(*command: str) -> str | None:
    """Returns what a command printed; None if it is absent, fails or takes over ten seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
