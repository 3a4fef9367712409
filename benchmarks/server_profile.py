"""Where a running server's CPU time goes: by thread from the kernel, by function from py-spy.

py-spy has an environment of its own (``benchmarks/contest/environments.py``). It sees Python
threads; what it does not name are ONNX Runtime's own threads.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest.environments import find_environment
from benchmarks.contest.processes import Unavailable

RATE = 200
# Of a stack the innermost of these tells what was being done.
STAGES = (
    ("serving/imaging/decoder_pool.py", "decode"),
    ("serving/imaging/header.py", "read_still"),
    ("serving/imaging/geometry.py", "scale"),
    ("serving/imaging/restore.py", "labels_at"),
    ("serving/formats/png.py", "write_png"),
    ("serving/engines/onnxruntime.py", "run"),
    ("serving/http/body.py", "read_image"),
    ("serving/service.py", "segment"),
)
# py-spy misses some waits: these frames wait; the last is the event loop in native code.
WAITING = (
    "serving/batching/engine_runner.py",
    "concurrent/futures/thread.py",
    "threading.py",
    "selectors.py",
    "asyncio/runners.py",
)


@dataclass(frozen=True)
class Profile:
    """Of one stretch of time.

    Attributes:
        threads: CPU seconds by kind of thread.
        functions: share (0-1) of the samples in which a Python thread was at work, by stage.
    """

    threads: Mapping[str, float]
    functions: Mapping[str, float]


@dataclass
class Recording:
    """Filled when the stretch ends."""

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
    command = [spy, "record", "--pid", str(pid), "--rate", str(RATE), "--format", "raw",
               "--duration", "3600", "--output", stacks]  # fmt: skip
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
    spent: Counter[str] = Counter()
    for thread, seconds in after.items():
        spent[names.get(thread, "ONNX Runtime")] += seconds - before.get(thread, 0.0)
    recording.profile = Profile(
        {name: round(seconds, 3) for name, seconds in spent.most_common()},
        read_stacks(stacks.read_text("utf-8") if stacks.exists() else ""),
    )


def read_stacks(text: str) -> dict[str, float]:
    """The share of samples a stage, of collapsed stacks; threads that wait are left out."""
    counts: Counter[str] = Counter()
    for row in text.splitlines():
        stack, _, count = row.rpartition(" ")
        frames = stack.split(";")
        if not any(file in frames[-1] for file in WAITING):
            counts[_stage(frames)] += int(count)
    total = sum(counts.values())
    return {name: round(count / total, 4) for name, count in counts.most_common()}


def _stage(frames: list[str]) -> str:
    for frame in reversed(frames):
        for file, function in STAGES:
            # As "OnnxEngine.run (serving/engines/onnxruntime.py:83)".
            if f"{function} ({file}:" in frame:
                return f"{file} {function}"
    return "event loop and the rest"


def _thread_names(spy: Path, pid: int) -> dict[int, str]:
    """Python's name of each thread, without numbers, by the kernel's id."""
    command = [spy, "dump", "--pid", str(pid), "--json", "--nonblocking"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise Unavailable(f"py-spy: {ran.stderr.strip()[-200:]}")
    threads = json.loads(ran.stdout)
    return {t["os_thread_id"]: (t["thread_name"] or "?").rstrip("0123456789_-") for t in threads}


def _thread_seconds(pid: int) -> dict[int, float]:
    """CPU seconds of every thread so far."""
    seconds = {}
    for folder in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            seconds[int(folder.name)] = ticks / os.sysconf("SC_CLK_TCK")
    return seconds
