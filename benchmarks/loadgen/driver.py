"""Sends a load and records when each request was due, was sent, and ended.

In an open loop, requests leave when they are due, however many are under way, and their latency
counts from when they were due, so neither a slow server nor a slow generator hides what callers
would wait (coordinated omission). In a closed loop, each caller has one request at a time."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.loadgen.targets import Outcome, Target
from serving.errors import SegserveError
from serving.imaging.decode import probe
from training.datasets.synthetic import render_scene

Offsets = npt.NDArray[np.float64]


def draw_poisson(per_second: float, seconds: float, seed: int = 0) -> Offsets:
    """Returns arrivals of a Poisson process: offsets in seconds, ascending, below ``seconds``.

    Independent callers, each rare, arrive like this; the same seed draws the same arrivals.

    Raises:
        ValueError: a rate or a length that is not positive.
    """
    if per_second <= 0 or seconds <= 0:
        raise ValueError(
            f"{per_second}/s for {seconds} s is not a valid load: expected positive numbers"
        )
    rng = np.random.default_rng(seed)
    offsets = np.empty(0)
    while not len(offsets) or offsets[-1] < seconds:
        count = int(per_second * seconds) + 16
        more = np.cumsum(rng.exponential(1 / per_second, count))
        offsets = np.concatenate([offsets, more + (offsets[-1] if len(offsets) else 0.0)])
    return offsets[offsets < seconds]


Clock = Callable[[], float]


@dataclass(frozen=True)
class Record:
    """The course of one request; times in seconds since the run began."""

    due: float
    sent: float
    ended: float
    outcome: Outcome

    @property
    def latency(self) -> float:
        """Returns the seconds from when it was due until it ended."""
        return self.ended - self.due

    @property
    def lateness(self) -> float:
        """Returns the seconds by which the generator sent it too late."""
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
    """Sends one image at each offset, cycling through ``images``; returns when all have ended.

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
    """Lets ``concurrency`` callers send for ``seconds``, each one request after the other."""
    log = _Log(target, clock)
    numbers = iter(range(10**12))

    async def call_again() -> None:
        while log.now() < seconds:
            await log.send(images[next(numbers) % len(images)])

    await asyncio.gather(*(call_again() for _ in range(concurrency)))
    return log.finish(f"closed loop, {concurrency} callers", None, seconds)


SCENES = 4


def read_folder(folder: Path) -> list[bytes]:
    """Returns every image file of a folder, in the order of their names.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    images = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        data = path.read_bytes() if path.is_file() else b""
        try:
            probe(data)
        except SegserveError:
            continue
        images.append(data)
    if not images:
        raise FileNotFoundError(f"{folder} holds no images: expected JPEG, PNG, BMP or WebP files")
    return images


def render_images(height: int, width: int, count: int = SCENES, seed: int = 7) -> list[bytes]:
    """Renders street scenes as JPEG, the same ones for the same arguments."""
    images = []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(render_scene(seed + number, height, width).image).save(
            file, "JPEG", quality=90
        )
        images.append(file.getvalue())
    return images
