"""Profiles a running server's CPU time: by thread from the kernel, by function from py-spy.

py-spy has an environment of its own (``benchmarks/contest/processes.py``). It sees Python
threads; what it does not name are ONNX Runtime's own threads.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest.processes import Unavailable, find_environment
from serving.batching.engine_runner import EngineThread

RATE = 200
# Of a frame, the file of the server; not those through which the event loop was started.
OWN_FILE = re.compile(r"\((serving/(?!cli|server|lifecycle|commands)[^:]+):")
# py-spy misses some waits: these frames wait; the last is the event loop in native code.
WAITING = (
    f"batching/{Path(inspect.getfile(EngineThread)).name}",
    "concurrent/futures/thread.py",
    "threading.py",
    "selectors.py",
    "asyncio/runners.py",
)


@dataclass(frozen=True)
class Profile:
    """The CPU time of one stretch of time, by where it was spent.

    Attributes:
        threads: CPU seconds by kind of thread.
        functions: share (0-1) of the samples in which a Python thread was at work, by stage.
    """

    threads: Mapping[str, float]
    functions: Mapping[str, float]


@dataclass
class Recording:
    """Holds the profile once the stretch has ended."""

    profile: Profile | None = None


@contextmanager
def profile_server(pid: int, folder: Path) -> Iterator[Recording]:
    """Profiles a process while the block runs.

    Raises:
        Unavailable: py-spy cannot be installed, or may not read the process.
    """
    spy = find_environment("py-spy") / "py-spy"
    names = _thread_names(spy, pid)
    stacks = folder / "stacks.txt"
    command: list[str | Path] = [
        spy, "record", "--pid", str(pid), "--rate", str(RATE), "--format", "raw",
        "--duration", "3600", "--output", stacks,
    ]  # fmt: skip
    recording = Recording()
    before = _thread_seconds(pid)
    recorder = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield recording
    finally:
        after = _thread_seconds(pid)
        recorder.send_signal(2)  # It writes on SIGINT.
        with suppress(subprocess.TimeoutExpired):
            recorder.wait(30)
        recorder.kill()
        recorder.wait()
    spent: dict[str, float] = defaultdict(float)
    for thread, seconds in after.items():
        spent[names.get(thread, "ONNX Runtime")] += seconds - before.get(thread, 0.0)
    recording.profile = Profile(
        {
            name: round(seconds, 3)
            for name, seconds in sorted(spent.items(), key=lambda item: -item[1])
        },
        read_stacks(stacks.read_text("utf-8") if stacks.exists() else ""),
    )


def read_stacks(text: str) -> dict[str, float]:
    """Returns each stage's share of collapsed stacks; waiting threads are left out."""
    counts: Counter[str] = Counter()
    for row in text.splitlines():
        stack, _, count = row.rpartition(" ")
        frames = stack.split(";")
        if not any(file in frames[-1] for file in WAITING):
            counts[_stage(frames)] += int(count)
    total = sum(counts.values())
    return {name: round(count / total, 4) for name, count in counts.most_common()}


def _stage(frames: Sequence[str]) -> str:
    """Returns the innermost file of the server on a stack."""
    for frame in reversed(frames):
        # As "OnnxEngine.run (serving/engines/onnxruntime.py:83)".
        if found := OWN_FILE.search(frame):
            return found[1]
    return "event loop and the rest"


def _thread_names(spy: Path, pid: int) -> dict[int, str]:
    """Returns Python's name of each thread, without numbers, by the kernel's id."""
    command: list[str | Path] = [spy, "dump", "--pid", str(pid), "--json", "--nonblocking"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise Unavailable(f"py-spy: {ran.stderr.strip()[-200:]}")
    threads = json.loads(ran.stdout)
    return {t["os_thread_id"]: (t["thread_name"] or "?").rstrip("0123456789_-") for t in threads}


def _thread_seconds(pid: int) -> dict[int, float]:
    """Returns the CPU seconds of every thread so far."""
    seconds = {}
    for folder in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            seconds[int(folder.name)] = ticks / os.sysconf("SC_CLK_TCK")
    return seconds
