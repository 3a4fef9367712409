"""Sends a load and notes when each request was due, was sent, and ended.

Open loop: requests leave when they are due, however many are under way, and their latency counts
from when they were due; so neither a slow server nor a slow generator hides what callers would
wait (coordinated omission). Closed loop: a number of callers, each with one request at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.loadgen.arrivals import Offsets
from benchmarks.loadgen.target import Outcome, Target

Clock = Callable[[], float]


@dataclass(frozen=True)
class Record:
    """One request; times in seconds since the run began."""

    due: float
    sent: float
    ended: float
    outcome: Outcome

    @property
    def latency(self) -> float:
        """Seconds from when it was due."""
        return self.ended - self.due

    @property
    def lateness(self) -> float:
        """Seconds that the generator sent it too late."""
        return self.sent - self.due


@dataclass(frozen=True)
class Run:
    """All requests of one load.

    Attributes:
        title: the target's.
        load: in words, as ``open loop, 20.0/s``.
        offered: requests a second that were due; None in a closed loop.
        seconds: requests were sent for so long.
        cpu_seconds: CPU time of this process, the generator.
        max_in_flight: requests under way at a time.
    """

    title: str
    load: str
    offered: float | None
    seconds: float
    records: tuple[Record, ...]
    cpu_seconds: float
    max_in_flight: int


class _Log:
    """Sends requests and collects their records."""

    def __init__(self, target: Target, clock: Clock) -> None:
        self.target = target
        self.clock = clock
        self.start = clock()
        self.cpu = time.process_time()
        self.records: list[Record] = []
        self.in_flight = 0
        self.max_in_flight = 0

    def now(self) -> float:
        return self.clock() - self.start

    async def send(self, image: bytes, due: float | None = None) -> None:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        sent = self.now()
        try:
            outcome = await self.target.send(image)
        # What a target raises is a fault of its code; noted as an error all the same, so that one
        # request does not end a long run.
        except Exception as error:
            outcome = Outcome("error", type(error).__name__)
        finally:
            self.in_flight -= 1
        self.records.append(Record(sent if due is None else due, sent, self.now(), outcome))

    def finish(self, load: str, offered: float | None, seconds: float) -> Run:
        return Run(
            self.target.title,
            load,
            offered,
            seconds,
            tuple(sorted(self.records, key=lambda record: record.due)),
            time.process_time() - self.cpu,
            self.max_in_flight,
        )


async def drive_open(
    target: Target,
    images: Sequence[bytes],
    offsets: Offsets,
    seconds: float,
    clock: Clock = time.perf_counter,
) -> Run:
    """Sends one image at each offset, in turn through ``images``; returns when all have ended.

    Args:
        offsets: seconds, ascending, below ``seconds``.
    """
    log, tasks = _Log(target, clock), []
    for number, due in enumerate(offsets.tolist()):
        # Also where none is left to wait: answers of before must be noted in time.
        await asyncio.sleep(max(0.0, due - log.now()))
        tasks.append(asyncio.create_task(log.send(images[number % len(images)], due)))
    await asyncio.sleep(max(0.0, seconds - log.now()))
    await asyncio.gather(*tasks)
    rate = len(offsets) / seconds
    return log.finish(f"open loop, {rate:.1f}/s", rate, seconds)


async def drive_closed(
    target: Target,
    images: Sequence[bytes],
    concurrency: int,
    seconds: float,
    clock: Clock = time.perf_counter,
) -> Run:
    """``concurrency`` callers send for ``seconds``, each its next image once it has its answer."""
    log = _Log(target, clock)
    numbers = iter(range(10**12))

    async def call_again() -> None:
        while log.now() < seconds:
            await log.send(images[next(numbers) % len(images)])

    await asyncio.gather(*(call_again() for _ in range(concurrency)))
    return log.finish(f"closed loop, {concurrency} callers", None, seconds)
