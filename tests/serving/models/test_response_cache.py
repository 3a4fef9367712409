"""What was answered before is answered again without the network, and never anything else."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest
from segserve_client.proto import segserve_pb2 as messages
from segserve_client.proto import segserve_pb2_grpc as services

from serving.batching.queue import Inferred
from serving.formats.label_map import Encoded
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction
from serving.models.response_cache import (
    OVERHEAD_BYTES,
    ModelCache,
    ResponseCache,
    StoredAnswer,
    digest_of,
)
from serving.observability.metrics import Metrics
from serving.observability.request_context import RequestContext, current_context
from serving.testing import FakeEngine
from tests.support.band_model import MODEL_SIZE, bands, encode, serve_fake, write_model
from tests.support.running import running
from tests.support.waiting import until

SEGMENT = "/v2/models/bands/segment"
PHOTO = bands(50, 70)
PNG = encode(PHOTO)


def enable(repository: Path) -> Path:
    """A repository whose model keeps its results."""
    folder = repository / "bands"
    if not folder.exists():
        write_model(repository)
    with (folder / "config.pbtxt").open("a") as config:
        config.write("response_cache { enable: true }\n")
    return repository


def read_metric(page: str, name: str, labels: str = "") -> float:
    (line,) = (line for line in page.splitlines() if line.startswith(f"{name}{labels} "))
    return float(line.rpartition(" ")[2])


async def test_nothing_is_kept_unless_a_model_says_so(tmp_path: Path) -> None:
    write_model(tmp_path)
    engine = FakeEngine(MODEL_SIZE)
    async with running(tmp_path, serve_fake(engine)) as (_, http):
        for _ in range(2):
            answer = await http.post(SEGMENT, content=PNG)
            assert answer.status_code == 200
            assert "x-cache" not in answer.headers
        page = (await http.get("/metrics")).text
    assert engine.batch_sizes == [1, 1]
    for name in ("hits", "misses"):
        assert (
            read_metric(page, f"segserve_cache_{name}_total", '{kind="answer",model="bands"}') == 0
        )


async def test_the_same_request_has_the_same_answer_without_a_run(tmp_path: Path) -> None:
    engine = FakeEngine(MODEL_SIZE)
    async with running(enable(tmp_path), serve_fake(engine)) as (_, http):
        first = await http.post(SEGMENT, content=PNG)
        again = await http.post(SEGMENT, content=PNG)
        assert (first.status_code, again.status_code) == (200, 200)
        assert (first.headers["x-cache"], again.headers["x-cache"]) == ("miss", "hit")
        assert again.content == first.content
        for name in ("content-type", "x-model-name", "x-model-version", "x-image-size",
                     "x-mask-size"):  # fmt: skip
            assert again.headers[name] == first.headers[name]
        assert engine.batch_sizes == [1]
        page = (await http.get("/metrics")).text
        assert read_metric(page, "segserve_cache_hits_total", '{kind="answer",model="bands"}') == 1
        assert (
            read_metric(page, "segserve_cache_misses_total", '{kind="answer",model="bands"}') == 1
        )
        assert read_metric(page, "segserve_cache_bytes") > len(first.content)
        assert read_metric(page, "segserve_requests_total", '{code="ok",model="bands"}') == 2


async def test_another_format_of_the_same_photo_is_not_inferred_again(tmp_path: Path) -> None:
    engine = FakeEngine(MODEL_SIZE)
    async with running(enable(tmp_path), serve_fake(engine)) as (_, http):
        await http.post(SEGMENT, content=PNG)
        for query in ("format=raw", "format=stats", "format=npy&confidence=true", "size=model",
                      "classes=1,2", "format=overlay"):  # fmt: skip
            answer = await http.post(f"{SEGMENT}?{query}", content=PNG)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-cache"] == "hit", query
        # The same pixels in a file of other bytes.
        answer = await http.post(SEGMENT, content=encode(PHOTO, "BMP"))
        assert (answer.status_code, answer.headers["x-cache"]) == (200, "hit"), answer.text
        assert engine.batch_sizes == [1]
        # One pixel more or less is another photo.
        other = PHOTO.copy()
        other[:, :35] = other[:, 35:]
        answer = await http.post(f"{SEGMENT}?format=raw", content=encode(other))
        assert answer.headers["x-cache"] == "miss"
        assert engine.batch_sizes == [1, 1]


async def test_answers_equal_those_without_a_cache(tmp_path: Path) -> None:
    queries = ["format=raw", "format=png&size=model", "format=stats", "format=confidence",
               "format=raw&smooth=false", "classes=3&format=raw", "format=polygons"]  # fmt: skip
    write_model(tmp_path / "plain")
    async with running(tmp_path / "plain", serve_fake(FakeEngine(MODEL_SIZE))) as (_, http):
        expected = [(await http.post(f"{SEGMENT}?{q}", content=PNG)).content for q in queries]
    async with running(enable(tmp_path / "kept"), serve_fake(FakeEngine(MODEL_SIZE))) as (_, http):
        for _ in range(2):
            found = [(await http.post(f"{SEGMENT}?{q}", content=PNG)).content for q in queries]
            assert found == expected


async def test_tensors_are_not_inferred_again(tmp_path: Path) -> None:
    engine = FakeEngine(MODEL_SIZE)
    pixels = bands(MODEL_SIZE.height, MODEL_SIZE.width)

    def body(*images: np.ndarray) -> dict[str, object]:
        shape = [len(images), *images[0].shape]
        data = np.stack(images).ravel().tolist()
        tensor = {"name": "image", "datatype": "UINT8", "shape": shape, "data": data}
        return {"inputs": [tensor], "outputs": [{"name": "mask"}]}

    async with running(enable(tmp_path), serve_fake(engine)) as (_, http):
        url = "/v2/models/bands/infer"
        first = await http.post(url, json=body(pixels))
        again = await http.post(url, json=body(pixels))
        assert (first.headers["x-cache"], again.headers["x-cache"]) == ("miss", "hit")
        assert again.json() == first.json()
        # Of two images one is new: something was inferred.
        both = await http.post(url, json=body(pixels, pixels[:, ::-1]))
        assert both.headers["x-cache"] == "miss"
        assert engine.batch_sizes == [1, 1]
        (stats,) = (await http.get("/v2/models/bands/stats")).json()["model_stats"]
        counts = stats["inference_stats"]
        assert (counts["cache_hit"]["count"], counts["cache_miss"]["count"]) == (2, 2)
        assert stats["inference_count"] == 2


async def test_over_grpc_too(tmp_path: Path) -> None:
    seen = []
    async with (
        running(enable(tmp_path), serve_fake(FakeEngine(MODEL_SIZE))) as (server, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel,
    ):
        stub = services.SegmenterStub(channel)
        for _ in range(2):
            call = stub.Segment(messages.SegmentRequest(model="bands", image=PNG))
            await call
            seen.append(dict(await call.initial_metadata())["x-cache"])
    assert seen == ["miss", "hit"]


async def test_keys_share_nothing(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one first-key-of-sixteen\ntwo second-key-of-sixteen\n")
    engine = FakeEngine(MODEL_SIZE)
    repository = enable(tmp_path / "models")
    async with running(repository, serve_fake(engine), api_keys_file=keys) as (_, http):
        seen = []
        for key in ("first", "second", "first", "second"):
            headers = {"X-API-Key": f"{key}-key-of-sixteen"}
            seen.append((await http.post(SEGMENT, content=PNG, headers=headers)).headers["x-cache"])
    assert seen == ["miss", "miss", "hit", "hit"]


async def test_errors_are_not_kept(tmp_path: Path) -> None:
    engine = FakeEngine(MODEL_SIZE, failing_runs=frozenset([0]))
    async with running(enable(tmp_path), serve_fake(engine)) as (_, http):
        assert (await http.post(SEGMENT, content=PNG)).status_code == 500
        answer = await http.post(SEGMENT, content=PNG)
        assert (answer.status_code, answer.headers["x-cache"]) == (200, "miss")
        assert (await http.post(f"{SEGMENT}?format=gif", content=PNG)).status_code == 400


async def test_a_deadline_that_has_passed_is_one_of_what_is_known_too(tmp_path: Path) -> None:
    async with running(enable(tmp_path), serve_fake(FakeEngine(MODEL_SIZE))) as (_, http):
        assert (await http.post(SEGMENT, content=PNG)).status_code == 200
        answer = await http.post(SEGMENT, content=PNG, headers={"X-Timeout-Ms": "0.001"})
        assert answer.status_code == 504
        assert "x-cache" not in answer.headers


async def test_a_new_configuration_or_version_forgets_what_was_before(tmp_path: Path) -> None:
    repository, engines = enable(tmp_path), []

    def open_engine(*arguments: object) -> FakeEngine:
        engines.append(FakeEngine(MODEL_SIZE))
        return engines[-1]

    settings = {"watch_repository": True, "poll_interval_s": 0.01, "enable_model_control": True}
    async with running(repository, open_engine, **settings) as (server, http):
        await http.post(SEGMENT, content=PNG)
        assert (await http.post(SEGMENT, content=PNG)).headers["x-cache"] == "hit"
        old = server.registry.get("bands")
        with (repository / "bands" / "config.pbtxt").open("a") as config:
            config.write('parameters { key: "resize" value { string_value: "letterbox" } }')
        await until(lambda: server.registry.get("bands") is not old)
        assert server.registry.get("bands").folder.resize == "letterbox"
        assert (await http.post(SEGMENT, content=PNG)).headers["x-cache"] == "miss"
        assert (await http.post(SEGMENT, content=PNG)).headers["x-cache"] == "hit"
        assert (await http.post("/v2/repository/models/bands/load")).status_code == 200
        assert (await http.post(SEGMENT, content=PNG)).headers["x-cache"] == "miss"
        assert (await http.post("/v2/repository/models/bands/unload")).status_code == 200
        page = (await http.get("/metrics")).text
        assert read_metric(page, "segserve_cache_bytes") == 0


async def test_without_room_nothing_is_kept(tmp_path: Path) -> None:
    engine, repository = FakeEngine(MODEL_SIZE), enable(tmp_path)
    async with running(repository, serve_fake(engine), response_cache_bytes=0) as (_, http):
        for _ in range(2):
            assert (await http.post(SEGMENT, content=PNG)).headers["x-cache"] == "miss"
    assert engine.batch_sizes == [1, 1]


def test_what_was_used_longest_ago_goes_first() -> None:
    metrics = Metrics()
    cache = ResponseCache(3 * (100 + OVERHEAD_BYTES), metrics)
    for key in "abc":
        cache.keep(key, key.upper(), 100)
    assert cache.find("a") == "A"
    cache.keep("d", "D", 100)
    assert [cache.find(key) for key in "abcd"] == ["A", None, "C", "D"]
    assert cache.used_bytes == 3 * (100 + OVERHEAD_BYTES)
    # What does not fit at all drops nothing.
    cache.keep("e", "E", 10_000)
    assert [cache.find(key) for key in "acde"] == ["A", "C", "D", None]
    # The same key anew counts once.
    cache.keep("a", "a", 50)
    assert cache.used_bytes == 3 * (100 + OVERHEAD_BYTES) - 50
    assert metrics.registry.get_sample_value("segserve_cache_evictions_total") == 1


@pytest.fixture
def kept() -> ModelCache:
    metrics = Metrics()
    return ModelCache(ResponseCache(1 << 20, metrics), "bands", metrics)


def test_logits_serve_who_needs_labels_and_not_the_other_way(kept: ModelCache) -> None:
    mask = Inferred(Prediction(None, np.zeros((4, 6), np.uint8)), 0.0, 0.0, 1)
    logits = Inferred(Prediction(np.zeros((3, 4, 6), np.float32), None), 0.0, 0.0, 1)
    kept.keep_prediction(b"one", mask, labels_suffice=True)
    assert kept.find_prediction(b"one", labels_suffice=True) is not None
    assert kept.find_prediction(b"one", labels_suffice=False) is None
    kept.keep_prediction(b"two", logits, labels_suffice=True)
    assert kept.find_prediction(b"two", labels_suffice=False) is not None
    # A graph that gives labels alone gives them to all.
    kept.keep_prediction(b"three", mask, labels_suffice=False)
    assert kept.find_prediction(b"three", labels_suffice=False) is not None


def test_a_part_of_a_batch_keeps_no_more_than_itself(kept: ModelCache) -> None:
    batch = np.zeros((4, 3, 4, 6), np.float32)
    kept.keep_prediction(b"one", Inferred(Prediction(batch[1], None), 0.0, 0.0, 4),
                         labels_suffice=False)  # fmt: skip
    found = kept.find_prediction(b"one", labels_suffice=False)
    assert found is not None
    assert found.logits is not None
    assert not np.shares_memory(found.logits, batch)
    with pytest.raises(ValueError, match="read-only"):
        found.logits[0, 0, 0] = 1
    batch[1] = 2  # nobody wrote into the batch


def test_models_and_options_are_kept_apart() -> None:
    metrics = Metrics()
    cache = ResponseCache(1 << 20, metrics)
    one, other = (ModelCache(cache, name, metrics) for name in ("one", "other"))
    answer = StoredAnswer({"raw": Encoded(b"x", "y")}, Size(1, 1), Size(1, 1))
    one.keep_answer(b"digest", "raw", answer)
    assert one.find_answer(b"digest", "raw") is answer
    assert one.find_answer(b"digest", "png") is None
    assert one.find_answer(b"another", "raw") is None
    assert other.find_answer(b"digest", "raw") is None
    one.clear()
    assert one.find_answer(b"digest", "raw") is None
    assert cache.used_bytes == 0


def test_a_digest_is_of_the_bytes() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert digest_of(pixels) == digest_of(pixels.tobytes())
    assert digest_of(pixels[:, ::-1]) != digest_of(pixels)
    assert digest_of(pixels[:, ::2]) == digest_of(pixels[:, ::2].copy())


def test_one_new_image_makes_a_request_a_miss(kept: ModelCache) -> None:
    context = RequestContext("http", "POST", "/", "127.0.0.1", "id")
    token = current_context.set(context)
    try:
        logits = Inferred(Prediction(np.zeros((3, 4, 6), np.float32), None), 0.0, 0.0, 1)
        kept.keep_prediction(b"known", logits, labels_suffice=False)
        assert kept.find_prediction(b"known", labels_suffice=False) is not None
        assert context.cache == "hit"
        kept.find_prediction(b"new", labels_suffice=False)
        kept.find_prediction(b"known", labels_suffice=False)
        assert context.cache == "miss"
        assert ("x-cache", "miss") in context.response_headers
    finally:
        current_context.reset(token)
