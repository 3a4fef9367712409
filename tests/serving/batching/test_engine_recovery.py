"""An engine that dies: its model is not ready, the engine is opened anew, and answers again."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from serving.batching import batcher
from serving.batching.engine_runner import EngineThread, Run
from serving.imaging.restore import Prediction
from serving.models.repository import ModelFolder
from serving.settings import Settings
from serving.testing import FakeEngine
from tests.support.band_model import MODEL_SIZE, encode, write_model
from tests.support.running import running
from tests.support.waiting import until

SEGMENT = "/v2/models/bands/segment?format=raw"
PHOTO = encode(np.full((20, 30, 3), 5, np.uint8))


class Mortal(FakeEngine):
    """Its thread ends with the run that follows ``death.set()``."""

    def __init__(self) -> None:
        super().__init__(MODEL_SIZE)
        self.death = threading.Event()

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        found = super().run(batch)
        if self.death.is_set():
            raise SystemExit("as told")
        return found


class Openings:
    """Opens an engine after the other; ``gate`` holds those after the first ones back."""

    def __init__(self) -> None:
        self.engines: list[Mortal] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, folder: ModelFolder, version: int, settings: Settings) -> Mortal:
        self.gate.wait()
        engine = Mortal()
        self.engines.append(engine)
        return engine


async def test_an_engine_that_dies_is_not_ready_and_then_opened_anew(repository: Path) -> None:
    opening = Openings()
    async with running(repository, opening) as (server, http):
        async with asyncio.timeout(30):
            assert (await http.post(SEGMENT, content=PHOTO)).status_code == 200
            opening.gate.clear()
            (first,) = opening.engines
            first.death.set()
            failed = await http.post(SEGMENT, content=PHOTO)
            assert (failed.status_code, failed.json()["code"]) == (500, "engine_failed")
            assert "thread ended" in failed.json()["error"]
            for path in ("/v2/models/bands/ready", "/v2/health/ready"):
                assert (await http.get(path)).status_code == 503
            refused = await http.post(SEGMENT, content=PHOTO)
            assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
            (entry,) = (await http.post("/v2/repository/index")).json()
            assert entry["state"] == "UNAVAILABLE"
            assert "thread ended" in entry["reason"]
            opening.gate.set()
            model = server.registry.get("bands")
            await until(lambda: model.is_ready)
            for path in ("/v2/models/bands/ready", "/v2/health/ready"):
                assert (await http.get(path)).status_code == 200
            assert (await http.post(SEGMENT, content=PHOTO)).status_code == 200
            page = (await http.get("/metrics")).text
            assert 'segserve_engine_restarts_total{model="bands"} 1.0' in page
    assert [engine.closed for engine in opening.engines] == [True, True]


async def test_a_broken_model_leaves_the_others_and_the_server_ready(tmp_path: Path) -> None:
    opening = Openings()
    for name in ("bands", "other"):
        write_model(tmp_path, name)
    async with running(tmp_path, opening) as (_, http):
        opening.gate.clear()
        opening.engines[0].death.set()
        assert (await http.post(SEGMENT, content=PHOTO)).status_code == 500
        assert (await http.get("/v2/models/bands/ready")).status_code == 503
        assert (await http.get("/v2/models/other/ready")).status_code == 200
        assert (await http.get("/v2/health/ready")).status_code == 200
        other = await http.post(SEGMENT.replace("bands", "other"), content=PHOTO)
        assert other.status_code == 200
        opening.gate.set()


async def test_a_thread_that_the_system_refuses_is_asked_for_again(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = Openings()
    async with running(repository, opening) as (server, http):
        refused = 0

        def refuse_twice(name: str) -> EngineThread[Run]:
            nonlocal refused
            refused += 1
            if refused <= 2:
                raise RuntimeError("can't start new thread")
            return EngineThread(name)

        monkeypatch.setattr(batcher, "EngineThread", refuse_twice)
        monkeypatch.setattr(batcher, "_THREAD_RETRY_S", 0.01)
        opening.engines[0].death.set()
        assert (await http.post(SEGMENT, content=PHOTO)).status_code == 500
        model = server.registry.get("bands")
        await until(lambda: model.is_ready)
        assert refused >= 3
        assert (await http.post(SEGMENT, content=PHOTO)).status_code == 200
