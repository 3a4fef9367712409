"""Starts and stops server processes, and reads their CPU time and memory from ``/proc``."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from serving.settings import cache_folder


def read_cpu_seconds(pid: int) -> float:
    """Returns user and system time of a process and its running descendants, in seconds.

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
    """Returns the processes and all their running descendants."""
    family = list(pids)
    for pid in family:  # grows while it is walked
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):
                family += [int(child) for child in children.read_text().split()]
    return family


START_SECONDS = 300.0
STOP_SECONDS = 20.0


class Unavailable(Exception):
    """Raised when a server cannot run here; the message says why."""


@dataclass(frozen=True)
class Memory:
    """Memory of a process and its running descendants, in MiB.

    Attributes:
        peak_rss: the sum of each process's peak; pages that they share count more than once.
        pss: proportional set size now.
    """

    peak_rss: float
    pss: float


@contextmanager
def run_process(
    command: Sequence[str | Path],
    variables: Mapping[str, str],
    is_ready: Callable[[], bool],
    log: Path,
) -> Iterator[int]:
    """Runs a process in a group of its own, and yields its id once it is ready.

    Raises:
        Unavailable: it ended, or was not ready in time; with the end of its log.
    """
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **variables},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text("utf-8", "replace").strip()[-500:]
                raise Unavailable(f"{Path(command[0]).name} did not start: {tail}")
            time.sleep(0.1)
        yield process.pid
    finally:
        _stop(process)


@contextmanager
def run_segserve(
    arguments: Sequence[str], variables: Mapping[str, str], log: Path
) -> Iterator[tuple[int, int]]:
    """Runs ``segserve serve`` on free ports, and yields its process id and HTTP port once ready.

    Raises Unavailable as ``run_process`` does.
    """
    http, grpc, metrics = free_ports(3)
    # Not the command: a checkout may not have installed it beside this Python.
    command = [sys.executable, "-m", "segserve", "serve", *arguments]
    command += ["--http-port", str(http), "--grpc-port", str(grpc)]
    command += ["--metrics-port", str(metrics), "--drain-seconds", "0"]
    ready = answers(f"http://127.0.0.1:{http}/v2/health/ready")
    with run_process(command, variables, ready, log) as pid:
        yield pid, http


def end_on_sigterm() -> None:
    """Turns SIGTERM into an exception, so that servers stop with their benchmark."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    # Workers that outlive it are in its group.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def answers(url: str) -> Callable[[], bool]:
    """Returns a check of whether a GET is answered with 200."""

    def ask() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    return ask


def free_ports(count: int) -> list[int]:
    """Returns ports of 127.0.0.1 on which nothing listens now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


def read_memory(pids: Sequence[int]) -> Memory:
    """Returns the memory of the processes and their descendants (Linux)."""
    peak = pss = 0
    for pid in find_family(pids):
        with suppress(OSError):
            peak += _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM")
            pss += _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss")
    return Memory(round(peak / 1024, 1), round(pss / 1024, 1))


def _kilobytes(file: Path, name: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


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
