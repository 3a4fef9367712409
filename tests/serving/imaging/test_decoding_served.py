"""Decoding behind a server: hostile files, deadlines, callers that leave, and the end."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving import preparation
from serving.http.body import TIMEOUT_HEADER
from serving.imaging.decode import read_still
from serving.testing import FakeEngine
from tests.support.band_model import MODEL_SIZE, Served, band_labels, bands, encode, serve_fake
from tests.support.photos import png_chunk
from tests.support.running import running
from tests.support.waiting import until

SEGMENT = "/v2/models/bands/segment?format=raw"
GOOD = encode(bands(32, 48), "PNG")
IHDR = struct.pack(">IIBBBBB", 48, 32, 8, 2, 0, 0, 0)
ROWS = zlib.compress(b"".join(b"\0" + row.tobytes() for row in bands(32, 48)))


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{served.http}", timeout=60) as client:
        yield client


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def frame_control(width: int, height: int, x: int = 0, y: int = 0) -> bytes:
    return struct.pack(">IIIIIHHBB", 0, width, height, x, y, 1, 10, 1, 0)


ANIMATION = ((b"acTL", struct.pack(">II", 2, 0)),)
APNG = {
    "frame beyond the canvas": png(
        (b"IHDR", IHDR), *ANIMATION, (b"fcTL", frame_control(4000, 4000, 9, 9)),
        (b"IDAT", ROWS), (b"IEND", b""),
    ),
    "disposed to the background": png(
        (b"IHDR", IHDR), *ANIMATION, (b"fcTL", frame_control(48, 32)), (b"IDAT", ROWS),
        (b"fcTL", frame_control(10, 10)), (b"fdAT", b"\0\0\0\2" + zlib.compress(bytes(310))),
        (b"IEND", b""),
    ),
    "no frame at all": png((b"IHDR", IHDR), *ANIMATION, (b"IDAT", ROWS), (b"IEND", b"")),
    "behind the end": png((b"IHDR", IHDR), (b"IDAT", ROWS), (b"IEND", b"")) + b"\x7f\xff\xff",
}  # fmt: skip


@pytest.mark.parametrize("kind", APNG)
def test_of_an_animation_only_the_still_image_is_decoded(http: httpx.Client, kind: str) -> None:
    answer = http.post(SEGMENT, content=APNG[kind])
    assert answer.status_code == 200, answer.text
    assert answer.content == band_labels(32, 48).tobytes()


def test_missing_rows_are_an_error_and_show_nobody_s_pixels(http: httpx.Client) -> None:
    short = zlib.compress(b"".join(b"\0" + row.tobytes() for row in bands(32, 48)[:3]))
    data = png((b"IHDR", IHDR), *ANIMATION, (b"fcTL", frame_control(48, 32)), (b"IDAT", short),
               (b"IEND", b""))  # fmt: skip
    answer = http.post(SEGMENT, content=data)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_image")


def test_what_lies_beside_the_repository_ends_right(
    http: httpx.Client, pytestconfig: pytest.Config
) -> None:
    folder = pytestconfig.rootpath.parent / "shared" / "cases" / "images"
    if not folder.is_dir():
        pytest.skip("no cases beside this checkout")
    for path in sorted(folder.iterdir()):
        answer = http.post(SEGMENT, content=path.read_bytes())
        assert answer.status_code in (200, 400, 413), (path.name, answer.text)
    assert http.post(SEGMENT, content=GOOD).content == band_labels(32, 48).tobytes()


def scans_again(data: bytes, count: int) -> bytes:
    """A progressive JPEG whose last scan is there ``count`` times more."""
    start = data.rindex(b"\xff\xda")
    return data[:-2] + data[start:-2] * count + b"\xff\xd9"


def test_scans_are_counted_before_decoding(http: httpx.Client) -> None:
    photo = encode_progressive(bands(32, 48))
    assert http.post(SEGMENT, content=photo).status_code == 200
    answer = http.post(SEGMENT, content=scans_again(photo, 100))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_image")
    assert "100 scans" in answer.json()["error"]


def encode_progressive(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", progressive=True)
    return buffer.getvalue()


async def test_scans_over_many_pixels_are_refused_by_the_limit_of_pixels(repository: Path) -> None:
    photo = scans_again(encode_progressive(bands(500, 500)), 40)
    engine = FakeEngine(MODEL_SIZE)
    async with running(repository, serve_fake(engine), max_image_megapixels=1.0) as (_, http):
        answer = await http.post(SEGMENT, content=photo)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert "max_image_megapixels" in answer.json()["error"]


def stop(processes: list[int]) -> None:
    for process in processes:
        os.kill(process, signal.SIGSTOP)


def rejected(server: object, reason: str) -> float:
    labels = {"model": "bands", "reason": reason}
    return server.metrics.registry.get_sample_value("segserve_rejected_total", labels) or 0.0


def restarts(server: object, reason: str) -> float | None:
    name = "segserve_decoder_restarts_total"
    return server.metrics.registry.get_sample_value(name, {"reason": reason})


async def test_a_deadline_holds_while_decoding_and_while_waiting_for_it(repository: Path) -> None:
    engine = FakeEngine(MODEL_SIZE)
    async with running(repository, serve_fake(engine), decoder_processes=1) as (server, http):
        assert restarts(server, "deadline") == 0
        stop(server.decoders.processes())
        hung = asyncio.create_task(
            http.post(SEGMENT, content=GOOD, headers={TIMEOUT_HEADER: "60000"})
        )
        await until(lambda: not server.decoders.processes())
        start = time.monotonic()
        waiting = await http.post(SEGMENT, content=GOOD, headers={TIMEOUT_HEADER: "300"})
        assert (waiting.status_code, waiting.json()["code"]) == (504, "deadline_exceeded")
        assert time.monotonic() - start < 10
        assert rejected(server, "deadline") == 1
        assert engine.batch_sizes == []
        # Who leaves gives its turn back, and its decoder is replaced.
        hung.cancel()
        await asyncio.gather(hung, return_exceptions=True)
        assert (await http.post(SEGMENT, content=GOOD)).status_code == 200
        assert restarts(server, "cancelled") == 1
        stop(server.decoders.processes())
        late = await http.post(SEGMENT, content=GOOD, headers={TIMEOUT_HEADER: "300"})
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert restarts(server, "deadline") == 1
        assert rejected(server, "deadline") == 2
        assert len(engine.batch_sizes) == 1
        assert (await http.post(SEGMENT, content=GOOD)).status_code == 200


async def test_a_deadline_holds_where_no_thread_is_free(repository: Path) -> None:
    """Answers can fill the pool: who waits behind them is not told late that it was too late."""
    engine = FakeEngine(MODEL_SIZE)
    async with running(repository, serve_fake(engine), pool_threads=2) as (server, http):
        free = threading.Event()
        held = [server.pool.submit(free.wait, 30) for _ in range(2)]
        try:
            late = await http.post(SEGMENT, content=GOOD, headers={TIMEOUT_HEADER: "300"})
        finally:
            free.set()
        assert all(future.result() for future in held), "it was answered after the threads were"
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert engine.batch_sizes == []
        assert (await http.post(SEGMENT, content=GOOD)).status_code == 200


async def test_a_deadline_holds_where_no_decoder_can_be_started(repository: Path) -> None:
    async with running(repository, serve_fake(FakeEngine(MODEL_SIZE))) as (server, http):
        os.kill(server.decoders.zygote, signal.SIGSTOP)
        for process in server.decoders.processes():
            os.kill(process, signal.SIGKILL)
        start = time.monotonic()
        late = await http.post(SEGMENT, content=GOOD, headers={TIMEOUT_HEADER: "300"})
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert time.monotonic() - start < 10
        os.kill(server.decoders.zygote, signal.SIGCONT)
        assert (await http.post(SEGMENT, content=GOOD)).status_code == 200


async def test_who_leaves_while_the_file_is_read_leaves_no_pixels_behind(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread reserves room for an image whose request has ended: it would stay for ever."""
    reading, left = threading.Event(), threading.Event()

    def read_slowly(*arguments: object) -> object:
        reading.set()
        assert left.wait(30)
        return read_still(*arguments)

    engine = FakeEngine(MODEL_SIZE)
    async with running(
        repository, serve_fake(engine), max_inflight_megapixels=0.001, pool_threads=3
    ) as (server, http):
        with monkeypatch.context() as patch:
            patch.setattr(preparation, "read_still", read_slowly)
            leaving = asyncio.create_task(http.post(SEGMENT, content=GOOD))
            await asyncio.to_thread(reading.wait, 30)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            await until(lambda: not server.admission.inflight)
            left.set()
            await asyncio.wrap_future(server.pool.submit(bool))
        for _ in range(2):
            answer = await http.post(SEGMENT, content=GOOD)
            assert answer.status_code == 200, answer.text


async def test_a_crash_costs_one_request_of_many(repository: Path) -> None:
    async with running(repository, serve_fake(FakeEngine(MODEL_SIZE))) as (server, http):
        stop(server.decoders.processes()[-1:])
        victim = server.decoders.processes()[-1]
        first = asyncio.create_task(http.post(SEGMENT, content=GOOD))
        await until(lambda: victim not in server.decoders.processes())
        others = await asyncio.gather(*(http.post(SEGMENT, content=GOOD) for _ in range(8)))
        os.kill(victim, signal.SIGSEGV)
        os.kill(victim, signal.SIGCONT)
        answer = await first
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_image")
        assert [other.status_code for other in others] == [200] * 8
        assert restarts(server, "crash") == 1
        assert (await http.post(SEGMENT, content=GOOD)).status_code == 200


async def test_a_stop_does_not_wait_for_decoders(repository: Path) -> None:
    async with running(
        repository, serve_fake(FakeEngine(MODEL_SIZE)), stop_timeout_s=1.0
    ) as (server, http):  # fmt: skip
        processes = server.decoders.processes()
        stop(processes)
        hung = asyncio.create_task(http.post(SEGMENT, content=GOOD))
        await until(lambda: len(server.decoders.processes()) < len(processes))
        start = time.monotonic()
    assert time.monotonic() - start < 15
    hung.cancel()
    await asyncio.gather(hung, return_exceptions=True)
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


async def test_without_decoder_processes_images_are_decoded_here(repository: Path) -> None:
    engine = FakeEngine(MODEL_SIZE)
    async with running(repository, serve_fake(engine), decoder_processes=0) as (server, http):
        assert server.decoders is None
        answer = await http.post(SEGMENT, content=GOOD)
        assert answer.content == band_labels(32, 48).tobytes()


def test_nothing_of_the_decoders_reaches_the_log(repository: Path, tmp_path: Path) -> None:
    """libpng and libjpeg write warnings on standard error, which would break a log of JSON."""
    code = """
import sys
from pathlib import Path
import httpx
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake
from serving.testing import FakeEngine, ServerThread
data = encode(bands(400, 600), "JPEG")
with ServerThread(free_ports(Path(sys.argv[1])), serve_fake(FakeEngine(MODEL_SIZE))) as server:
    url = f"http://127.0.0.1:{server.ports.http}/v2/models/bands/segment"
    assert httpx.post(url, content=data[: len(data) * 3 // 4] + b"\\xff\\xd9").status_code == 200
    png = bytearray(encode(bands(32, 48), "PNG"))
    png[60] ^= 255
    assert httpx.post(url, content=bytes(png)).status_code == 400
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(repository)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[3],
    )
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", "")
