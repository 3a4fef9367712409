"""Memory that was free goes back to the system, at quiet moments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving.observability import memory_return
from serving.observability.memory_return import (
    KEPT_END_BYTES,
    LONGEST_AGAIN_S,
    LONGEST_S,
    WORTH_BYTES,
    MemoryReturner,
)
from tests.support.waiting import wait_for

BASE = 300 << 20


class Process:
    """A process whose memory is what a test says; a trim leaves ``floor``."""

    def __init__(self) -> None:
        self.resident, self.floor, self.now, self.trims = BASE, BASE, 0.0, 0

    def trim(self) -> None:
        self.trims += 1
        self.resident = self.floor


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
def returner(process: Process) -> MemoryReturner:
    return MemoryReturner(lambda: process.resident, process.trim, lambda: process.now)


def look(returner: MemoryReturner, process: Process, *, seconds: float = 2.0) -> int:
    process.now += seconds
    returner.check()
    return process.trims


def test_nothing_is_done_where_nothing_grew(returner: MemoryReturner, process: Process) -> None:
    for _ in range(50):
        assert look(returner, process) == 0
    process.resident += WORTH_BYTES - 1
    for _ in range(50):
        assert look(returner, process) == 0


def test_what_was_taken_is_given_back_once_it_is_quiet(
    returner: MemoryReturner, process: Process
) -> None:
    look(returner, process)
    process.resident += 4 * WORTH_BYTES
    assert look(returner, process) == 0  # it grows: requests are at work
    process.floor = BASE + WORTH_BYTES // 2  # a connection still holds something
    assert look(returner, process) == 1
    assert process.resident == process.floor
    process.floor = BASE
    # Once more, after the connections are gone; as that gave something, once more.
    assert [look(returner, process) for _ in range(20)][-1] == 3
    assert process.resident == BASE


def test_memory_that_is_in_use_is_asked_for_ever_more_seldom(
    returner: MemoryReturner, process: Process
) -> None:
    look(returner, process)
    process.resident = process.floor = BASE + 10 * WORTH_BYTES  # a model was loaded
    an_hour = [look(returner, process) for _ in range(1800)]
    assert an_hour[20] <= 4
    assert an_hour[-1] <= 7 + 3600.0 / LONGEST_AGAIN_S
    # It was unloaded: what comes later is measured from there.
    process.resident = process.floor = BASE
    assert [look(returner, process) for _ in range(400)][-1] == an_hour[-1]
    process.resident += 2 * WORTH_BYTES
    assert [look(returner, process) for _ in range(2)][-1] == an_hour[-1] + 1


def test_what_was_held_while_it_was_looked_for_goes_back_later(
    returner: MemoryReturner, process: Process
) -> None:
    """A message that is in use at the first try lies free in a heap soon after."""
    look(returner, process)
    process.resident = process.floor = BASE + 8 * WORTH_BYTES
    assert [look(returner, process) for _ in range(2)][-1] == 1
    process.floor = BASE
    for _ in range(4):
        look(returner, process)
    assert process.resident == BASE


def test_under_load_it_is_seldom(returner: MemoryReturner, process: Process) -> None:
    for _ in range(60):
        process.resident = BASE + WORTH_BYTES * (2 if process.resident == BASE else 4)
        look(returner, process)
        process.resident = BASE
        look(returner, process)
    assert 1 <= process.trims <= 240.0 / LONGEST_S


_PIECES = """
import ctypes, time
from serving.observability.memory_return import open_memory_returner, _read_resident
returner = open_memory_returner()
if returner is None:
    print("none")
    raise SystemExit
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
returner.check()
pieces = [libc.malloc(100_000) for _ in range(2000)]
for piece in pieces:
    ctypes.memset(piece, 1, 100_000)
kept = libc.malloc(100_000)  # at the end: the heap above which nothing is free does not shrink
full = _read_resident()
for piece in pieces:
    libc.free(piece)
freed = _read_resident()
returner.start()
end = time.monotonic() + 30
while _read_resident() > full - 150_000_000 and time.monotonic() < end:
    time.sleep(0.1)
print(full, freed, _read_resident())
returner.stop()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_pieces_of_a_real_process_go_back() -> None:
    out = subprocess.run(
        [sys.executable, "-c", _PIECES], capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    if out == ["none"]:
        pytest.skip("the C library has no malloc_trim")
    full, freed, after = map(int, out)
    assert freed > full - 50_000_000  # the allocator keeps it by itself
    assert after < full - 150_000_000


_HEAPS = """
import ctypes, threading, time
from serving.observability.memory_return import open_memory_returner, _read_resident
if open_memory_returner() is None:
    print("none")
    raise SystemExit
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
ended, done, before = threading.Event(), [0], _read_resident()

def take_and_free():
    pieces = [libc.malloc(1_000_000) for _ in range(30)]
    for piece in pieces:
        ctypes.memset(piece, 1, 1_000_000)
    for piece in pieces:
        libc.free(piece)
    done[0] += 1
    ended.wait()

for number in range(4):  # one after the other, each alive until the end: a heap each
    threading.Thread(target=take_and_free).start()
    while done[0] <= number:
        time.sleep(0.01)
libc.malloc_trim(0)
print(_read_resident() - before)
ended.set()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_what_is_free_at_the_end_of_every_heap_goes_back() -> None:
    """malloc_trim leaves the ends of other threads' heaps, which once kept up to 32 MiB each."""
    out = subprocess.run(
        [sys.executable, "-c", _HEAPS], capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()
    if out == "none":
        pytest.skip("the C library has no malloc_trim")
    assert int(out) < 4 * (KEPT_END_BYTES + 1_000_000)


def test_a_look_that_fails_is_followed_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without a file left to read the memory from."""
    monkeypatch.setattr(memory_return, "CHECK_S", 0.01)
    looks: list[int] = []

    def read_resident() -> int:
        looks.append(1)
        if len(looks) < 3:
            raise OSError("too many open files")
        return 1 << 20

    returner = MemoryReturner(read_resident, lambda: None)
    returner.start()
    wait_for(lambda: len(looks) > 5)
    returner.stop()
