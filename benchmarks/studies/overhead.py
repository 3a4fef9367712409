"""Measures what the server adds to its engine.

``python -m benchmarks.studies.overhead icnet --precision int8``.

Saturated: answers a second, JPEG to PNG, over the runs a second of the bare engine in a loop, in
turn. One caller: a request's time minus an engine run and a restore, each measured in its turn. The
engine here has the server's settings and number of threads.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import numpy.typing as npt
import typer

from benchmarks.contest.cases import CASES, MAX_MEGAPIXELS, MODEL, build_files, prepare
from benchmarks.contest.clients import ContestTarget
from benchmarks.contest.contestants import Served, Setting, serve_here
from benchmarks.contest.measure import answer_rate
from benchmarks.contest.processes import Unavailable, end_on_sigterm, read_cpu_seconds
from benchmarks.loadgen.driver import drive_closed, read_folder, render_images
from benchmarks.loadgen.server_metrics import read_metrics
from benchmarks.machine import RESULTS, ResultsFolder, read_machine, write_result
from benchmarks.studies.server_profile import Profile, profile_server
from benchmarks.timing import Spread, ratios, spread_of, time_runs
from serving import server as lifecycle
from serving.engines.onnxruntime import OnnxEngine
from serving.imaging import decode as image
from serving.imaging import restore
from serving.imaging.geometry import Size

PRECISIONS = ("fp32", "int8")
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Saturated:
    """The figures with all cores busy.

    Attributes:
        bare: runs of the engine a second.
        served: answers a second.
        share: served by bare, of the same turn.
        bare_cpu_s, served_cpu_s: CPU seconds an image.
    """

    bare: Spread
    served: Spread
    share: Spread
    bare_cpu_s: Spread
    served_cpu_s: Spread


@dataclass(frozen=True)
class Alone:
    """The figures of one caller: milliseconds of wall time.

    Attributes:
        engine, restore: each by itself, in this process.
        request: JPEG sent to PNG received.
        beyond: request minus engine and restore, of the same turn.
        stages: means of what the server itself reports (``/metrics``).
    """

    engine: Spread
    restore: Spread
    request: Spread
    beyond: Spread
    stages: dict[str, float]


def overhead(
    network: Annotated[str, typer.Argument(help=f"Case: {', '.join(CASES)}.")] = "icnet",
    precision: Annotated[str, typer.Option(help="int8 or fp32.")] = "int8",
    photos: Annotated[
        Path | None, typer.Option(help="Folder of photos; default: rendered scenes.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of engine and server.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each turn.")] = 10.0,
    turns: Annotated[int, typer.Option(min=1, help="Requests of the single caller.")] = 15,
    callers: Annotated[int, typer.Option(min=1, help="Callers that saturate the server.")] = 4,
    profile: Annotated[bool, typer.Option(help="Also profile the saturated server.")] = True,
    results: ResultsFolder = RESULTS,
) -> None:
    """Prints and writes both figures, and where the server's CPU time goes."""
    if network not in CASES:
        raise typer.BadParameter(f"{network!r} is not a case: expected {', '.join(CASES)}")
    if precision not in PRECISIONS:
        raise typer.BadParameter(
            f"--precision {precision!r} is not valid: expected {' or '.join(PRECISIONS)}"
        )
    case = CASES[network]
    sent = read_folder(photos) if photos else render_images(case.photo.height, case.photo.width)
    threads = len(os.sched_getaffinity(0))
    files = build_files(case, sent, threads)
    repository = files.int8 if precision == "int8" else files.fp32
    machine = read_machine()
    lifecycle.warm_stages()
    cv2.setNumThreads(1)
    engine = OnnxEngine(
        repository / MODEL / "1" / "model.onnx",
        instances=1,
        threads=threads,
        max_batch_size=1,
    )
    with tempfile.TemporaryDirectory(prefix="segserve-overhead-") as folder:
        setting = Setting(files, threads, Path(folder))
        with serve_here(lambda _: repository)(setting) as served:
            saturated = asyncio.run(_saturate(engine, served, sent, rounds, seconds, callers))
            typer.echo(
                f"{case.title}, {precision}: bare {saturated.bare}/s, served {saturated.served}/s, "
                f"share {saturated.share}; CPU s an image {saturated.bare_cpu_s} and "
                f"{saturated.served_cpu_s}"
            )
            alone = asyncio.run(_call_alone(engine, served, sent, turns))
            typer.echo(
                f"one caller, ms: engine {alone.engine}, restore {alone.restore}, request "
                f"{alone.request}, beyond {alone.beyond}; {alone.stages}"
            )
            found = _profile(served, sent, seconds, callers, Path(folder)) if profile else None
    engine.close()
    content = {
        "subject": {"network": case.title, "precision": precision, "threads": threads,
                    "photos": f"{len(sent)} of {photos.name}" if photos else "rendered scenes"},
        "saturated": saturated,
        "alone_ms": alone,
        "profile": found,
    }  # fmt: skip
    typer.echo(str(write_result(f"overhead_{network}_{precision}", content, machine, results)))


async def _saturate(
    engine: OnnxEngine,
    served: Served,
    photos: Sequence[bytes],
    rounds: int,
    seconds: float,
    callers: int,
) -> Saturated:
    pixels = [prepare(photo, engine.spec.size)[None] for photo in photos]
    target = ContestTarget("segserve", served.connect(served.port))
    await drive_closed(target, photos, callers, 0.1)
    bare, bare_cpu, answered, answered_cpu = [], [], [], []
    for _ in range(rounds):
        timing = time_runs(partial(_run_next, engine, itertools.cycle(pixels)), seconds, 1)
        bare.append(len(timing.walls) / timing.total)
        bare_cpu.append(timing.cpu / len(timing.walls))
        before = read_cpu_seconds(served.pids[0])
        run = await drive_closed(target, photos, callers, seconds)
        spent = read_cpu_seconds(served.pids[0]) - before
        ends = [r.ended for r in run.records if r.outcome.status == "ok"]
        if len(ends) != len(run.records):
            raise SystemExit(f"a request was not answered: {run.records[-1].outcome}")
        answered.append(answer_rate(ends))
        answered_cpu.append(spent / len(ends))
    await target.close()
    return Saturated(
        spread_of(bare),
        spread_of(answered),
        ratios(answered, bare),
        spread_of(bare_cpu),
        spread_of(answered_cpu),
    )


async def _call_alone(
    engine: OnnxEngine, served: Served, photos: Sequence[bytes], turns: int
) -> Alone:
    client = served.connect(served.port)
    pixels = [prepare(photo, engine.spec.size)[None] for photo in photos]
    engine_ms: list[float] = []
    restore_ms: list[float] = []
    request_ms: list[float] = []
    url = f"http://127.0.0.1:{served.port}/metrics"
    before = None
    size = engine.spec.size
    photo_size = Size(*image.decode(photos[0], max_megapixels=MAX_MEGAPIXELS).shape[:2])
    for turn in range(-1, turns):
        chosen = turn % len(photos)
        at = [time.perf_counter()]
        logits = engine.run(pixels[chosen])[0].logits
        at.append(time.perf_counter())
        assert logits is not None
        restore.labels_from_logits(logits, size, photo_size)
        at.append(time.perf_counter())
        await client.ask(photos[chosen])
        at.append(time.perf_counter())
        if before is None:  # warms
            before = read_metrics(url)
            continue
        for times, start, end in zip(
            (engine_ms, restore_ms, request_ms), at[:-1], at[1:], strict=True
        ):
            times.append((end - start) * 1000)
    await client.close()
    assert before is not None
    stages = read_metrics(url).since(before).stages
    beyond = [r - e - s for r, e, s in zip(request_ms, engine_ms, restore_ms, strict=True)]
    return Alone(
        spread_of(engine_ms),
        spread_of(restore_ms),
        spread_of(request_ms),
        spread_of(beyond),
        {name: round(stage.mean * 1000, 2) for name, stage in stages.items()},
    )


def _run_next(engine: OnnxEngine, images: Iterator[Pixels]) -> None:
    engine.run(next(images))


def _profile(
    served: Served, photos: Sequence[bytes], seconds: float, callers: int, folder: Path
) -> Profile | None:
    """Profiles the saturated server; None, with the reason printed, where py-spy is unavailable."""
    target = ContestTarget("segserve", served.connect(served.port))

    async def load() -> int:
        run = await drive_closed(target, photos, callers, seconds)
        await target.close()
        return len(run.records)

    try:
        with profile_server(served.pids[0], folder) as recording:
            count = asyncio.run(load())
    except Unavailable as error:
        typer.echo(f"no profile: {error}")
        return None
    assert recording.profile is not None
    threads = {n: round(s / count, 4) for n, s in recording.profile.threads.items()}
    typer.echo(
        f"CPU s an image by thread: {threads}\nsamples by stage: {recording.profile.functions}"
    )
    return replace(recording.profile, threads=threads)


def main() -> None:
    """Runs the command line."""
    end_on_sigterm()
    typer.run(overhead)


if __name__ == "__main__":
    main()
