"""Server processes: started, waited for, ended with all that they started, and their memory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.loadgen.process_time import find_family

START_SECONDS = 300.0
STOP_SECONDS = 20.0


class Unavailable(Exception):
    """A server that cannot be had here; the text says why."""


@dataclass(frozen=True)
class Memory:
    """Of a process and all that descend from it, in MiB.

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
    """A process in a group of its own, ready; its id.

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
    """``segserve serve`` on free ports, ready; its process's id and its HTTP port.

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
    """Makes SIGTERM an exception, so that servers end with the benchmark that started them."""
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
    """Whether a GET is answered with 200."""

    def ask() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    return ask


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


def read_memory(pids: Sequence[int]) -> Memory:
    """Linux: of the processes and their descendants, from ``/proc``."""
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
