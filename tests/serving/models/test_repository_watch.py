"""Hot reload: what changes in the folder is served once it is whole, good, and of the contract."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import numpy as np
import numpy.typing as npt
import pytest
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto.segserve_pb2_grpc import SegmenterStub

from serving.errors import InvalidModel
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction
from serving.models.repository import ModelFolder, read_model
from serving.models.warmup import read_warmups
from serving.models.watch import RepositoryWatch
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine
from tests.support.band_model import CLASSES, MODEL_SIZE, encode, write_model
from tests.support.running import running
from tests.support.waiting import until

SEGMENT = "/v2/models/bands/segment?format=raw"
PHOTO = encode(np.full((20, 30, 3), 5, np.uint8))


class Recorder(FakeEngine):
    """Remembers its version and the batches it ran."""

    def __init__(self, version: int, size: Size) -> None:
        super().__init__(size)
        self.version = version
        self.batches: list[npt.NDArray[np.uint8]] = []

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        self.batches.append(batch.copy())
        return super().run(batch)


class Opener:
    """An engine a version: a graph that says ``broken`` does not open, ``narrow`` is smaller."""

    def __init__(self) -> None:
        self.engines: list[Recorder] = []

    def __call__(self, folder: ModelFolder, version: int, settings: Settings) -> Recorder:
        text = folder.graph(version).read_text()
        if text == "broken":
            raise InvalidModel(f"{folder.graph(version)}: broken as told")
        self.engines.append(Recorder(version, Size(32, 32) if text == "narrow" else MODEL_SIZE))
        return self.engines[-1]


@asynccontextmanager
async def watched(
    repository: Path,
) -> AsyncIterator[tuple[Server, httpx.AsyncClient, RepositoryWatch, Opener]]:
    opener = Opener()
    async with running(repository, opener) as (server, http):
        yield server, http, RepositoryWatch(repository, server.registry, server.pool), opener


def write_version(folder: Path, version: int, text: str = "") -> None:
    (folder / str(version)).mkdir(exist_ok=True)
    (folder / str(version) / "model.onnx").write_text(text)


async def look_twice(watch: RepositoryWatch) -> None:
    await watch.compare()
    await watch.compare()


async def answering_version(http: httpx.AsyncClient) -> str:
    answer = await http.post(SEGMENT, content=PHOTO)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-model-version"]


async def index_of(http: httpx.AsyncClient) -> list[tuple[str, str, str]]:
    entries = (await http.post("/v2/repository/index")).json()
    return [(e.get("version", ""), e["state"], e.get("reason", "")) for e in entries]


async def test_a_new_version_takes_over_once_its_files_have_settled(repository: Path) -> None:
    async with watched(repository) as (_, http, watch, opener):
        write_version(repository / "bands", 2, "half")
        await watch.compare()
        write_version(repository / "bands", 2, "whole now")
        await watch.compare()
        assert len(opener.engines) == 1  # it was still being written
        assert await answering_version(http) == "1"
        await watch.compare()
        assert await answering_version(http) == "2"
        assert [engine.closed for engine in opener.engines] == [True, False]
        await watch.compare()
        assert len(opener.engines) == 2
        shutil.rmtree(repository / "bands" / "2")
        await look_twice(watch)
        assert await answering_version(http) == "1"


async def test_versions_that_did_not_change_stay_loaded(repository: Path) -> None:
    folder = repository / "bands"
    with (folder / "config.pbtxt").open("a") as file:
        file.write("version_policy { all { } }")
    async with watched(repository) as (server, http, watch, opener):
        first = server.registry.get("bands", 1).batcher
        write_version(folder, 3)
        await look_twice(watch)
        assert server.registry.get("bands", 1).batcher is first
        assert [engine.version for engine in opener.engines] == [1, 3]
        metadata = (await http.get("/v2/models/bands/versions/1")).json()
        assert metadata["versions"] == ["1", "3"]


@pytest.mark.parametrize(("text", "why"), [("broken", "broken as told"), ("narrow", "other image")])
async def test_a_version_that_cannot_be_served_replaces_none(
    repository: Path, text: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(repository) as (_, http, watch, opener):
        write_version(repository / "bands", 2, text)
        await look_twice(watch)
        assert await answering_version(http) == "1"
        good, bad = await index_of(http)
        assert good == ("1", "READY", "")
        assert bad[:2] == ("2", "UNAVAILABLE")
        assert why in bad[2]
        assert why in caplog.text
        page = (await http.get("/metrics")).text
        assert 'segserve_reload_failures_total{model="bands"} 1.0' in page
        opened = len(opener.engines)
        await look_twice(watch)
        assert len(opener.engines) == opened  # not tried again until it changes
        write_version(repository / "bands", 2, "mended by now")
        await look_twice(watch)
        assert await answering_version(http) == "2"
        assert await index_of(http) == [("2", "READY", "")]


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("labels.txt", "\n".join(reversed(CLASSES)), "other classes"),
        ("config.pbtxt", "no_such_field: 1", "no_such_field"),
        (
            "config.pbtxt",
            'parameters { key: "ignore_label" value { string_value: "0" } }',
            "other ignore_label",
        ),
    ],
)
async def test_other_labels_or_a_broken_configuration_are_refused_by_name(
    repository: Path, file: str, content: str, why: str
) -> None:
    path = repository / "bands" / file
    async with watched(repository) as (_, http, watch, _opener):
        before = path.read_text() if file == "config.pbtxt" else ""
        path.write_text(before + content)
        await look_twice(watch)
        assert await answering_version(http) == "1"
        assert any(why in reason for _, _, reason in await index_of(http))


async def test_another_configuration_of_the_same_contract_is_followed(repository: Path) -> None:
    config = repository / "bands" / "config.pbtxt"
    async with watched(repository) as (server, http, watch, opener):
        delay = "dynamic_batching { max_queue_delay_microseconds: 1500 }"
        config.write_text(config.read_text().replace("dynamic_batching { }", delay))
        await look_twice(watch)
        assert server.registry.get("bands").batcher.limits.scheduling.delay_s == 0.0015
        assert [engine.closed for engine in opener.engines] == [True, False]
        assert await answering_version(http) == "1"


async def test_models_come_and_go(repository: Path) -> None:
    async with watched(repository) as (server, http, watch, _):
        write_model(repository, "later")
        await look_twice(watch)
        assert [model.name for model in server.registry.models()] == ["bands", "later"]
        shutil.rmtree(repository / "bands")
        await watch.compare()
        assert await answering_version(http) == "1"
        await watch.compare()
        assert (await http.post(SEGMENT, content=PHOTO)).status_code == 404
        assert [model.name for model in server.registry.models()] == ["later"]


async def test_the_setting_turns_the_watch_on(repository: Path) -> None:
    opener = Opener()
    settings = {"watch_repository": True, "poll_interval_s": 0.01}
    async with running(repository, opener, **settings) as (server, http), asyncio.timeout(30):
        write_version(repository / "bands", 2)
        await until(lambda: server.registry.get("bands").version == 2)
        assert await answering_version(http) == "2"


async def test_a_change_that_is_cancelled_leaves_nothing_open(repository: Path) -> None:
    """As where the server stops meanwhile: what was opened for it is closed, and nothing else."""
    config = repository / "bands" / "config.pbtxt"
    config.write_text(config.read_text() + "version_policy { all { } }")
    async with watched(repository) as (server, http, _, opener):
        begun, go = threading.Event(), threading.Event()
        load = server.registry.loader.open_engine

        def open_engine(folder: ModelFolder, version: int, settings: Settings) -> Recorder:
            if version == 3:
                begun.set()
                go.wait(60)
            return load(folder, version, settings)

        server.registry.loader.open_engine = open_engine
        for version in (2, 3):
            write_version(repository / "bands", version)
        change = asyncio.create_task(server.registry.refresh("bands", {2, 3}, server.pool))
        await until(begun.is_set)
        change.cancel()
        await asyncio.gather(change, return_exceptions=True)
        assert change.cancelled()
        try:
            assert [(e.version, e.closed) for e in opener.engines] == [(1, False), (2, True)]
        finally:
            go.set()
        assert await answering_version(http) == "1"


async def test_a_swap_under_load_fails_no_request(repository: Path) -> None:
    async with watched(repository) as (server, http, watch, opener):
        seen: dict[str, set[str]] = {"http": set(), "grpc": set()}
        stopping = asyncio.Event()
        address = f"127.0.0.1:{server.ports.grpc}"
        request = pb.SegmentRequest(model="bands", image=PHOTO)

        async def ask_over_http() -> None:
            while not stopping.is_set():
                seen["http"].add(await answering_version(http))

        async def ask_over_grpc() -> None:
            async with grpc.aio.insecure_channel(address) as channel:
                while not stopping.is_set():
                    answer = await SegmenterStub(channel).Segment(request)
                    seen["grpc"].add(str(answer.version))

        callers = [asyncio.create_task(ask()) for ask in [ask_over_http, ask_over_grpc] * 4]

        def have_seen(version: str) -> bool:
            # A caller ends before its time only by failing.
            return any(c.done() for c in callers) or all(version in s for s in seen.values())

        await until(lambda: have_seen("1"))
        for version in range(2, 6):
            write_version(repository / "bands", version)
            await look_twice(watch)
            await until(lambda wanted=str(version): have_seen(wanted))
        stopping.set()
        await asyncio.gather(*callers)
        assert seen == {transport: {"1", "2", "3", "4", "5"} for transport in seen}
        assert [engine.closed for engine in opener.engines] == [True] * 4 + [False]


WARMUP = """
model_warmup { name: "file" batch_size: 3 count: 2 inputs { key: "image" value {
  data_type: TYPE_UINT8 dims: [ 32, 48, 3 ] input_data_file: "scene" } } }
model_warmup { name: "zeros" inputs { key: "image" value {
  data_type: TYPE_UINT8 dims: [ 32, 48, 3 ] zero_data: true } } }
"""


async def test_warmup_runs_before_the_first_request(repository: Path) -> None:
    folder = repository / "bands"
    with (folder / "config.pbtxt").open("a") as file:
        file.write(WARMUP)
    (folder / "warmup").mkdir()
    scene = np.arange(32 * 48 * 3, dtype=np.uint8)
    scene.tofile(folder / "warmup" / "scene")
    async with watched(repository) as (_, _http, _watch, opener):
        batches = opener.engines[0].batches
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert (batches[0] == scene.reshape(32, 48, 3)).all()
    assert not batches[2].any()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("batch_size: 3", "batch_size: 9"), "max_batch_size 4"),
        (("dims: [ 32, 48, 3 ] input", "dims: [ 8, 8, 3 ] input"), r"\[32, 48, 3\]"),
        (('"scene"', '"../../other/scene"'), "warmup/scene has 5 bytes"),
        (('key: "image"', 'key: "picture"'), "picture"),
    ],
)
def test_warmup_that_cannot_run_is_named(
    repository: Path, change: tuple[str, str], why: str
) -> None:
    folder = repository / "bands"
    with (folder / "config.pbtxt").open("a") as file:
        file.write(WARMUP.replace(*change))
    (folder / "warmup").mkdir()
    (folder / "warmup" / "scene").write_bytes(b"short")
    with pytest.raises(InvalidModel, match=why):
        list(read_warmups(read_model(folder)))
