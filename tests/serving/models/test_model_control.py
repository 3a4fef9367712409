"""Index, load, unload and statistics, asked by tritonclient over both protocols."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.support.band_model import bands, encode, write_model
from tests.support.open_server import (
    CLIENTS,
    OpenServer,
    index_of,
    pixels_of,
    run_open_server,
    statistics_of,
)
from tests.support.waiting import wait_for

pytestmark = pytest.mark.parametrize("protocol", ["http", "grpc"])


@pytest.fixture
def opened(repository: Path) -> Iterator[OpenServer]:
    write_model(repository, "twin")
    with run_open_server(repository) as server:
        yield server


def test_unload_and_load(opened: OpenServer, repository: Path, protocol: str) -> None:
    write_model(repository, "later")
    with opened.client(protocol) as client:
        assert index_of(client) == [
            ("bands", "1", "READY"), ("later", "", ""), ("twin", "1", "READY"),
        ]  # fmt: skip
        client.unload_model("twin")
        assert not client.is_model_ready("twin")
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException, match="unknown model 'twin'"):
            client.infer("twin", [pixels_of(protocol)])
        assert ("twin", "1", "UNAVAILABLE") in index_of(client)
        client.unload_model("twin")  # once more is no error
        client.load_model("twin")
        client.load_model("later")
        assert [state for _, _, state in index_of(client)] == ["READY"] * 3
        assert client.infer("later", [pixels_of(protocol)]).as_numpy("mask").shape == (1, 32, 48)
    # bands and twin at the start, twin again, later
    assert [engine.closed for engine in opened.engines] == [False, True, False, False]


def test_what_cannot_be_loaded_leaves_what_is(
    opened: OpenServer, repository: Path, protocol: str
) -> None:
    with opened.client(protocol) as client:
        with pytest.raises(InferenceServerException, match="failed to load 'nope'"):
            client.load_model("nope")
        labels = repository / "twin" / "labels.txt"
        before = labels.read_text()
        labels.unlink()
        with pytest.raises(InferenceServerException, match=r"load failed for model 'twin'.*labels"):
            client.load_model("twin")
        assert client.is_model_ready("twin")
        client.unload_model("twin")
        with pytest.raises(InferenceServerException, match=r"labels\.txt"):
            client.load_model("twin")
        assert ("twin", "", "UNAVAILABLE") in index_of(client)
        labels.write_text(before)
        client.load_model("twin")
        assert ("twin", "1", "READY") in index_of(client)
        with pytest.raises(InferenceServerException, match="load parameter 'config'"):
            client.load_model("twin", config='{"max_batch_size": 1}')


def test_a_reload_waits_for_the_requests_of_the_old_one(opened: OpenServer, protocol: str) -> None:
    old = opened.engines[0]
    old.hold.clear()
    with ThreadPoolExecutor(2) as pool, opened.client(protocol) as client:

        def infer() -> tuple[int, ...]:
            with opened.client(protocol) as own:
                return own.infer("bands", [pixels_of(protocol)]).as_numpy("mask").shape

        def load() -> None:
            with opened.client(protocol) as own:
                own.load_model("bands")

        waiting = pool.submit(infer)
        wait_for(lambda: old.batch_sizes)
        loading = pool.submit(load)
        wait_for(lambda: len(opened.engines) == 3)
        # The new one answers while the old one still runs.
        while not opened.engines[2].batch_sizes:
            assert not loading.done()
            if opened.server.registry.get("bands").engine is opened.engines[2]:
                client.infer("bands", [pixels_of(protocol)])
        assert not old.closed
        old.hold.set()
        assert waiting.result(60) == (1, 32, 48)
        loading.result(60)
    assert old.closed


def test_without_the_setting_the_index_alone_is_there(repository: Path, protocol: str) -> None:
    with (
        run_open_server(repository, enable_model_control=False) as server,
        server.client(protocol) as client,
    ):
        for change in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="enable_model_control"):
                change("bands")
        assert index_of(client) == [("bands", "1", "READY")]


def test_statistics_count_requests_images_and_runs(opened: OpenServer, protocol: str) -> None:
    with opened.client(protocol) as client:
        (empty,) = statistics_of(client, "bands")
        assert empty["inference_count"] == empty["last_inference"] == 0
        client.infer("bands", [pixels_of(protocol)])
        client.infer("bands", [pixels_of(protocol, 3)])
        opened.engines[0].failing_runs = frozenset({2})
        with pytest.raises(InferenceServerException, match="fails as requested"):
            client.infer("bands", [pixels_of(protocol)])
        with pytest.raises(InferenceServerException):  # the caller's fault: not counted
            client.infer("bands", [pixels_of(protocol, 5)])
        bands, twin = statistics_of(client)
        assert (bands["name"], bands["version"], twin["name"]) == ("bands", "1", "twin")
        assert bands["inference_count"] == 4
        assert bands["execution_count"] == 2
        assert bands["last_inference"] > 1_000_000_000_000
        counts = {name: entry["count"] for name, entry in bands["inference_stats"].items()}
        assert counts == {
            "success": 2, "fail": 1, "queue": 2, "compute_input": 2, "compute_infer": 2,
            "compute_output": 2, "cache_hit": 0, "cache_miss": 0,
        }  # fmt: skip
        spent = {name: entry["ns"] for name, entry in bands["inference_stats"].items()}
        assert spent["success"] >= spent["queue"] + spent["compute_infer"] > 0
        assert spent["compute_output"] > 0
        assert [batch["batch_size"] for batch in bands["batch_stats"]] == [1, 3]
        assert [batch["compute_infer"]["count"] for batch in bands["batch_stats"]] == [1, 1]
        assert twin["execution_count"] == 0
        with pytest.raises(InferenceServerException, match="unknown model 'nope'"):
            client.get_inference_statistics("nope")
        client.load_model("bands")  # loaded anew it begins anew
        assert statistics_of(client, "bands")[0]["inference_count"] == 0


def test_encoded_images_count_decoding_as_input(opened: OpenServer, protocol: str) -> None:
    item = CLIENTS[protocol].InferInput("image", [1], "BYTES")
    item.set_data_from_numpy(np.array([encode(bands(100, 160))], object))
    with opened.client(protocol) as client:
        client.infer("bands", [item])
        (stats,) = statistics_of(client, "bands")
    assert stats["inference_stats"]["compute_input"]["ns"] > 0


def test_metrics_forget_what_is_unloaded(opened: OpenServer, protocol: str) -> None:
    line = 'segserve_model_info{engine="fake",model="twin",precision="fp32",version="1"} 1.0'
    page = f"http://{opened.address('http')}/metrics"
    assert line in httpx.get(page).text
    with opened.client(protocol) as client:
        client.unload_model("twin")
    assert line not in httpx.get(page).text
