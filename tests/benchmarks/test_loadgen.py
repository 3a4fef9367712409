"""The load generator: what it counts, and that it drives a real server over both transports."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import load
from benchmarks.contest.processes import read_cpu_seconds
from benchmarks.loadgen.driver import (
    Record,
    Run,
    draw_poisson,
    drive_closed,
    drive_open,
    read_folder,
    render_images,
)
from benchmarks.loadgen.server_metrics import Distribution, parse_metrics
from benchmarks.loadgen.summary import Load, Timing, measure_load, summarise
from benchmarks.loadgen.targets import GrpcTarget, HttpTarget, Outcome, Target
from tests.support.band_model import Served, bands, encode, serve_bands
from tests.support.waiting import until

IMAGES = [encode(bands(32, 48)), encode(bands(20, 30))]
OK = Outcome("ok", response_bytes=7)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_bands(tmp_path_factory.mktemp("repository")) as served:
        yield served


class OneAtATime:
    """A server that takes ``seconds`` for each request, and one after the other."""

    title = "one at a time"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.received: list[bytes] = []
        self._free = asyncio.Lock()

    async def send(self, image: bytes) -> Outcome:
        self.received.append(image)
        async with self._free:
            await asyncio.sleep(self.seconds)
        return OK

    async def close(self) -> None:
        return


class Failing(OneAtATime):
    async def send(self, image: bytes) -> Outcome:
        raise ConnectionResetError("gone")


def test_arrivals_are_a_poisson_process() -> None:
    offsets = draw_poisson(50.0, 200.0, seed=3)
    gaps = np.diff(offsets)
    assert offsets[0] >= 0
    assert offsets[-1] < 200.0
    assert (gaps >= 0).all()
    # 10,000 of them: mean and spread of the gaps are equal, 4 standard errors wide.
    assert len(offsets) == pytest.approx(10_000, abs=400)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.04)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.06)
    np.testing.assert_array_equal(offsets, draw_poisson(50.0, 200.0, seed=3))
    assert len(draw_poisson(1e-6, 1.0)) == 0
    with pytest.raises(ValueError, match="positive"):
        draw_poisson(0.0, 1.0)


async def test_an_open_loop_counts_from_when_requests_were_due() -> None:
    """A server that stalls must not slow the arrivals, nor hide what callers would have waited."""
    target = OneAtATime(0.1)
    run = await drive_open(target, IMAGES, np.zeros(6), 0.01)
    assert run.max_in_flight == 6
    assert target.received == IMAGES * 3
    latencies = sorted(record.latency for record in run.records)
    for number, latency in enumerate(latencies, 1):
        assert latency >= 0.1 * number * 0.9
    assert all(record.lateness >= 0 for record in run.records)
    assert run.offered == 600.0


async def test_a_closed_loop_never_has_more_than_its_callers() -> None:
    run = await drive_closed(OneAtATime(0.002), IMAGES, 3, 0.5)
    assert run.max_in_flight == 3
    assert run.offered is None
    assert len(run.records) > 3
    assert all(record.lateness == 0 for record in run.records)


async def test_what_a_target_raises_is_an_error_of_its_request() -> None:
    run = await drive_open(Failing(0.0), IMAGES, np.zeros(2), 0.01)
    assert summarise(run).errors == {"ConnectionResetError": 2}


def test_a_summary_counts_each_request_once() -> None:
    records = (
        Record(0.5, 0.5, 0.6, OK),  # skipped, and ended before what is counted
        Record(0.9, 0.9, 1.1, OK),  # skipped, but its answer came within
        Record(1.0, 1.2, 1.4, OK),
        Record(1.5, 1.5, 2.8, OK),  # late
        Record(2.0, 2.0, 2.1, Outcome("rejected", "queue_full")),
        Record(2.5, 2.5, 2.6, Outcome("error", "internal")),
        Record(2.9, 2.9, 3.3, OK),  # in time, after the end
    )
    run = Run("x", "open loop", 2.0, 3.0, records, cpu_seconds=0.33, max_in_flight=2)
    found = summarise(run, deadline_s=1.0, skip_s=1.0)
    assert (found.requests, found.offered) == (5, 2.5)
    assert found.throughput == 1.5  # at 1.1, 1.4 and 2.8
    assert found.goodput == 1.0
    assert found.in_time_share == 0.4
    assert found.late == 1
    assert found.rejected == {"queue_full": 1}
    assert found.errors == {"internal": 1}
    assert found.latency.p50 == pytest.approx(400)
    assert found.latency.max == pytest.approx(1300)
    assert found.refusal.mean == pytest.approx(100)
    assert found.lateness.max == pytest.approx(200)
    assert found.client_cpu == pytest.approx(0.1)
    assert summarise(run, skip_s=1.0).late == 0
    empty = summarise(Run("x", "", 0.0, 3.0, (), 0.0, 0))
    assert math.isnan(empty.latency.p50)
    assert empty.in_time_share == 0.0


def test_quantiles_are_read_from_buckets_as_prometheus_does() -> None:
    found = Distribution({0.1: 2.0, 0.2: 6.0, 0.5: 10.0, math.inf: 12.0}, 12.0, 3.0)
    assert found.mean == 0.25
    assert found.quantile(0.25) == pytest.approx(0.125)
    assert found.quantile(0.5) == pytest.approx(0.2)
    assert found.quantile(0.75) == pytest.approx(0.425)
    assert found.quantile(0.99) == 0.5  # the last bucket has no end
    assert math.isnan(Distribution().quantile(0.5))
    since = found.minus(Distribution({0.1: 2.0, 0.2: 2.0, 0.5: 2.0, math.inf: 2.0}, 2.0, 0.1))
    assert since.quantile(0.4) == pytest.approx(0.2)


def test_metrics_of_all_models_add_up() -> None:
    page = """
segserve_stage_duration_seconds_bucket{model="a",stage="infer",le="0.1"} 1
segserve_stage_duration_seconds_bucket{model="a",stage="infer",le="+Inf"} 2
segserve_stage_duration_seconds_sum{model="a",stage="infer"} 0.5
segserve_stage_duration_seconds_count{model="a",stage="infer"} 2
segserve_stage_duration_seconds_bucket{model="b",stage="infer",le="0.1"} 1
segserve_stage_duration_seconds_bucket{model="b",stage="infer",le="+Inf"} 1
segserve_stage_duration_seconds_sum{model="b",stage="infer"} 0.25
segserve_stage_duration_seconds_count{model="b",stage="infer"} 1
segserve_rejected_total{model="a",reason="deadline"} 3
segserve_rejected_total{model="b",reason="deadline"} 4
"""
    found = parse_metrics(page)
    assert found.stages["infer"].mean == 0.25
    assert found.rejected == {"deadline": 7}
    assert math.isnan(found.cpu_seconds)


async def send_all(target: Target, images: list[bytes]) -> list[Outcome]:
    try:
        return [await target.send(image) for image in images]
    finally:
        await target.close()


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_targets_tell_answers_refusals_and_errors_apart(served: Served, transport: str) -> None:
    def reach(model: str, deadline_s: float | None = None) -> Target:
        if transport == "grpc":
            return GrpcTarget(served.grpc, model, deadline_s=deadline_s)
        return HttpTarget(f"http://{served.http}", model, deadline_s=deadline_s)

    good, bad = asyncio.run(send_all(reach("bands"), [IMAGES[0], b"no image"]))
    assert good.status == "ok"
    assert good.response_bytes > 0
    assert (bad.status, bad.reason) == ("error", "invalid_image")
    (unknown,) = asyncio.run(send_all(reach("nope"), IMAGES[:1]))
    assert (unknown.status, unknown.reason) == ("error", "model_not_found")

    async def ask_twice() -> Outcome:
        # Not so little that what was learnt refuses it at once.
        hurried, patient = reach("bands", 0.5), reach("bands")
        before = len(served.engine.batch_sizes)
        first = asyncio.create_task(patient.send(IMAGES[0]))
        await until(lambda: len(served.engine.batch_sizes) > before)
        late = await hurried.send(IMAGES[0])
        served.engine.hold.set()
        assert (await first).status == "ok"
        await hurried.close()
        await patient.close()
        return late

    served.engine.hold.clear()
    try:
        late = asyncio.run(ask_twice())
    finally:
        served.engine.hold.set()
    assert late.status == "rejected"
    # On a busy machine the server has learnt that it would be late, and says so at once.
    assert late.reason in ("deadline_exceeded", "predicted_late")


def test_nobody_there_is_an_error() -> None:
    (outcome,) = asyncio.run(send_all(HttpTarget("http://127.0.0.1:1", "bands"), IMAGES[:1]))
    assert outcome.status == "error"
    assert "Connect" in outcome.reason


async def test_a_measurement_holds_what_the_server_says(served: Served) -> None:
    target = HttpTarget(f"http://{served.http}", "bands")
    url = f"http://127.0.0.1:{served.server.ports.metrics}/metrics"
    timing = Timing(seconds=0.3, skip_s=0.0, deadline_s=None, rest_s=0.0)
    measured = await measure_load(target, IMAGES, Load(per_second=60.0), timing, url)
    await target.close()
    assert measured.server is not None
    answered = round(measured.summary.goodput * 0.3)
    assert answered == measured.summary.requests > 0
    for stage in ("decode", "queue", "infer", "restore", "encode"):
        assert measured.server.stages[stage].count == answered
    assert measured.server.batches.sum == answered
    assert measured.server_cpu > 0
    with pytest.raises(ValueError, match="callers"):
        await measure_load(target, IMAGES, Load(), timing)


def test_cpu_time_of_a_process_has_that_of_its_children() -> None:
    assert read_cpu_seconds(os.getpid()) > 0
    assert read_cpu_seconds(os.getppid()) >= read_cpu_seconds(os.getpid()) - 0.05
    with pytest.raises(ProcessLookupError):
        read_cpu_seconds(2**30)


def test_images_of_a_folder_and_rendered_ones(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(IMAGES[0])
    (tmp_path / "a.png").write_bytes(IMAGES[1])
    (tmp_path / "notes.txt").write_text("no image")
    assert read_folder(tmp_path) == [IMAGES[1], IMAGES[0]]
    assert read_folder(tmp_path / "b.png") == [IMAGES[0]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="expected JPEG"):
        read_folder(tmp_path / "empty")
    first, second = render_images(60, 80, 2)
    assert first != second
    assert render_images(60, 80, 2) == [first, second]


@pytest.mark.parametrize(
    ("transport", "asked", "names"),
    [
        ("http", ["--percent", "20,40", "--capacity-callers", "2", "--plot"],
         ["capacity", "20 %", "40 %", "capacity"]),
        ("grpc", ["--concurrency", "1,2", "--rate", "30"],
         ["closed loop, 1 callers", "closed loop, 2 callers", "open loop"]),
    ],
)  # fmt: skip
def test_the_command_drives_and_writes(
    served: Served, tmp_path: Path, transport: str, asked: list[str], names: list[str]
) -> None:
    app = typer.Typer()
    app.command()(load.load)
    arguments = [
        "--server", f"http://{served.http}", "--model", "bands", "--size", "60x80",
        "--seconds", "0.3", "--skip", "0.05", "--rest", "0", "--results", str(tmp_path),
        "--name", "try", *asked,
    ]  # fmt: skip
    if transport == "grpc":
        arguments += ["--grpc", served.grpc]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    written = json.loads((tmp_path / "try.json").read_text())
    told = [entry["name"] for entry in written["measurements"]]
    # What an open loop is called says what it came to.
    assert [re.sub(r"loop, [\d.]+/s", "loop", name) for name in told] == names
    assert written["subject"]["transport"] == transport
    assert written["machine"]["cpu"]
    for entry in written["measurements"]:
        assert entry["errors"] == {}
        assert entry["server"]["cores"] >= 0
    if "--plot" in asked:
        assert (tmp_path / "try.png").read_bytes().startswith(b"\x89PNG")
    assert f"| {names[0]} |" in done.output
    assert "decode" in done.output


def test_the_command_asks_for_a_load() -> None:
    app = typer.Typer()
    app.command()(load.load)
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 2
    assert "--concurrency" in done.output
