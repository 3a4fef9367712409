"""A real server in a process of its own, whose health can be asked for: a program.

Arguments: an empty folder, which becomes its repository. It writes one line of JSON with its ports,
then answers each line on stdin with one about its event loop and memory, and ends with stdin.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from mutant_values import REGION_BYTES, REGION_KEY, SPARE

from serving.models.repository import ModelFolder
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, free_ports, write_model

SAMPLE_S = 0.02


class LoopWatch:
    """Measures how long the event loop computes without a pause, on its own thread."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def run(self) -> None:
        """CPU seconds of the loop's thread from one turn to the next, until it is cancelled.

        Not wall time: a busy machine delays every loop.
        """
        last = time.thread_time()
        while True:
            await asyncio.sleep(SAMPLE_S)
            now = time.thread_time()
            self.longest_s = max(self.longest_s, now - last)
            last = now

    def take(self) -> float:
        """The longest since the last call."""
        longest, self.longest_s = self.longest_s, 0.0
        return longest


def resident_bytes() -> int:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_engine(folder: ModelFolder, version: int, settings: Settings) -> FakeEngine:
    """An engine for each model and each time it is loaded."""
    return FakeEngine(MODEL_SIZE)


def main() -> None:
    """Serves two models with everything switched on that callers may use."""
    folder = Path(sys.argv[1])
    for name in ("bands", SPARE):
        write_model(folder, name)
    enabled = {"enable_model_control": True, "enable_shared_memory": True}
    settings = free_ports(folder).model_copy(update=enabled)
    # Its name is the same in every mutant of that number, so several servers may share it.
    region = Path("/dev/shm" + REGION_KEY)
    region.write_bytes(bytes(REGION_BYTES))
    thread = ServerThread(settings, open_engine)
    watch = LoopWatch()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        with thread as server:
            watching = asyncio.run_coroutine_threadsafe(watch.run(), thread._loop)
            ports = {"http": server.ports.http, "grpc": server.ports.grpc}
            print(json.dumps(ports), file=answers, flush=True)
            for _ in sys.stdin:
                health = {"loop_s": watch.take(), "resident_bytes": resident_bytes()}
                print(json.dumps(health), file=answers, flush=True)
            watching.cancel()
    finally:
        region.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
