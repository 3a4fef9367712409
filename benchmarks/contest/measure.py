"""Measures one turn of one server: starts it, warms it, checks its answer, loads it, stops it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.contest.cases import Case
from benchmarks.contest.clients import Client, ContestTarget, count_bytes
from benchmarks.contest.contestants import Contestant, Served, Setting
from benchmarks.contest.processes import Unavailable, read_cpu_seconds, read_memory
from benchmarks.loadgen.driver import Run, draw_poisson, drive_closed, drive_open


@dataclass(frozen=True)
class Load:
    """A closed loop of ``callers``, or the case's open loop where that is None."""

    callers: int | None

    @property
    def name(self) -> str:
        """Returns its name in the results."""
        return "open" if self.callers is None else f"closed {self.callers}"


@dataclass(frozen=True)
class Row:
    """The figures of one load in one turn.

    Attributes:
        contestant, load: their names.
        round: of the whole result, from 0; rows of one round were measured in turn.
        throughput: answers a second, until the last one.
        offered: requests a second of an open loop.
        latencies_ms: of every answer, from when its request was due.
        server_cpu_s, client_cpu_s: CPU time an image; the client's includes the load generator.
        sent_bytes, received_bytes: on the wire for the first photo, as the client sees it.
        peak_rss_mib, pss_mib: of all the server's processes, after this load.
        agreement: share (0-1) of the first photo's pixels that have plain float32's label.
        errors: requests without an answer, by what was said.
    """

    contestant: str
    load: str
    round: int
    throughput: float
    offered: float | None
    latencies_ms: tuple[float, ...]
    server_cpu_s: float
    client_cpu_s: float
    sent_bytes: int
    received_bytes: int
    peak_rss_mib: float
    pss_mib: float
    agreement: float
    errors: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """The findings of the first answers: bytes on the wire, and how many labels are right."""

    sent_bytes: int
    received_bytes: int
    agreement: float


async def measure_turn(
    contestant: Contestant,
    setting: Setting,
    case: Case,
    photos: Sequence[bytes],
    loads: Sequence[Load],
    number: int,
    report: Callable[[Row], None],
) -> None:
    """Starts the server, passes ``report`` a row for each load, and stops the server.

    Raises:
        Unavailable: the server cannot run here, or does not answer as it should.
    """
    with contestant.start(setting) as served:
        check = await _check(served, setting, photos)
        target = ContestTarget(contestant.title, served.connect(served.port))
        try:
            for load in loads:
                before = _cpu_seconds(served)
                run = await _drive(target, case, photos, load, number)
                spent = _cpu_seconds(served) - before
                report(_sum_up(contestant, load, number, run, spent, check, served))
        finally:
            await target.close()


async def _ask_once(client: Client, photo: bytes) -> bytes:
    try:
        return await client.ask(photo)
    finally:
        await client.close()


async def _check(served: Served, setting: Setting, photos: Sequence[bytes]) -> Check:
    """Sends two requests, which warms the server; counts bytes and compares labels."""
    try:
        await _ask_once(served.connect(served.port), photos[-1])
        async with count_bytes(served.port) as wire:
            answer = await _ask_once(served.connect(wire.port), photos[0])
    except Exception as error:
        raise Unavailable(
            f"the server does not answer: {type(error).__name__}: {error}"[:300]
        ) from error
    found = np.asarray(Image.open(io.BytesIO(answer)))
    expected = np.asarray(Image.open(setting.files.reference))
    if found.shape != expected.shape:
        raise Unavailable(f"the mask has the shape {found.shape}: expected {expected.shape}")
    return Check(wire.sent, wire.received, float((found == expected).mean()))


async def _drive(
    target: ContestTarget, case: Case, photos: Sequence[bytes], load: Load, number: int
) -> Run:
    if load.callers is None:
        # The same arrivals for every server of a round.
        offsets = draw_poisson(case.open_rate, case.open_s, number)
        return await drive_open(target, photos, offsets, case.open_s)
    return await drive_closed(target, photos, load.callers, case.closed_s)


def _sum_up(
    contestant: Contestant,
    load: Load,
    number: int,
    run: Run,
    server_cpu: float,
    check: Check,
    served: Served,
) -> Row:
    answered = [record for record in run.records if record.outcome.status == "ok"]
    failed = {r.outcome.reason for r in run.records if r.outcome.status != "ok"}
    count = max(1, len(answered))
    memory = read_memory(served.pids)
    return Row(
        contestant=contestant.name,
        load=load.name,
        round=number,
        throughput=answer_rate([record.ended for record in answered]),
        offered=run.offered,
        latencies_ms=tuple(round(record.latency * 1000, 1) for record in answered),
        server_cpu_s=server_cpu / count,
        client_cpu_s=run.cpu_seconds / count,
        sent_bytes=check.sent_bytes,
        received_bytes=check.received_bytes,
        peak_rss_mib=memory.peak_rss,
        pss_mib=memory.pss,
        agreement=check.agreement,
        errors=tuple(sorted(failed)),
    )


def answer_rate(ends: Sequence[float]) -> float:
    """Returns answers a second, from the first request to the last answer.

    Callers stop after a while, but their last requests keep the server busy to the end. So servers
    that answer one by one and servers that answer in batches are judged alike: a count between
    answers would favour the latter by the images that were begun before.

    Args:
        ends: when answers came, in seconds since the first request.
    """
    return len(ends) / max(ends) if ends else 0.0


def _cpu_seconds(served: Served) -> float:
    return sum(read_cpu_seconds(pid) for pid in served.pids)
