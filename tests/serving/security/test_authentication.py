"""API keys: the file, the limits on a clock of our own, and both transports of a real server."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.errors import InvalidSetting, KeyLimitExceeded, Unauthenticated
from serving.security.api_keys import KeyRing, parse_keys
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, Served, bands, encode, free_ports, serve_fake
from tests.support.waiting import wait_for

ALICE, BOB, CAROL = "alice-0123456789", "bob-0123456789abc", "carol-0123456789"
FILE = f"""
# who   what
alice   {ALICE}
bob     sha256:{hashlib.sha256(BOB.encode()).hexdigest()} requests_per_second=0.001  # once
carol   {CAROL} concurrent=1 requests_per_second=1000
"""
SEGMENT = "/v2/models/bands/segment?format=raw"
DATA = encode(bands(32, 48))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.txt"
    path.write_text(FILE)
    return path


def test_keys_are_found_by_text_and_by_digest(keys_file: Path) -> None:
    ring = KeyRing(keys_file, Clock())
    assert [ring.find(key).key.name for key in (ALICE, BOB, CAROL)] == ["alice", "bob", "carol"]
    for wrong in (
        "",
        ALICE[:-1],
        ALICE + "x",
        "sha256:" + hashlib.sha256(BOB.encode()).hexdigest(),
    ):
        with pytest.raises(Unauthenticated) as error:
            ring.find(wrong)
        assert not wrong or wrong not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_key_of_other_letters_is_found_however_a_client_encodes_it(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, encoding: str
) -> None:
    """curl and browsers send UTF-8, Python's requests latin-1."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("zoë schlüssel-0123456789", "utf-8")
    settings = free_ports(repository).model_copy(update={"api_keys_file": path})
    with ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))) as server:
        url = f"http://127.0.0.1:{server.ports.http}/v2"
        for name in (b"X-API-Key", b"Authorization"):
            scheme = "Bearer " if name == b"Authorization" else ""
            key = f"{scheme}schlüssel-0123456789".encode(encoding)
            assert httpx.get(url, headers=[(name, key)]).status_code == 200
            assert httpx.get(url, headers=[(name, key + b"x")]).status_code == 401


def test_the_rate_is_a_bucket_of_one_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    path.write_text(f"alice {ALICE} requests_per_second=2")
    use = KeyRing(path, clock).find(ALICE)
    use.enter()
    use.enter()
    with pytest.raises(KeyLimitExceeded, match="2 requests per second") as error:
        use.enter()
    assert error.value.retry_after == "1"
    clock.now = 0.6
    use.enter()
    with pytest.raises(KeyLimitExceeded):
        use.count()
    clock.now = 100.0
    use.count()
    use.count()
    with pytest.raises(KeyLimitExceeded):
        use.count()


def test_concurrent_calls_are_counted_until_they_leave(keys_file: Path) -> None:
    use = KeyRing(keys_file, Clock()).find(CAROL)
    use.enter()
    with pytest.raises(KeyLimitExceeded, match="concurrent"):
        use.enter()
    use.leave()
    use.enter()


def test_a_changed_file_is_read_anew_and_a_broken_one_is_not_taken(
    keys_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    ring = KeyRing(keys_file, clock)
    busy = ring.find(CAROL)
    busy.enter()
    keys_file.write_text(FILE.replace(ALICE, "another-0123456789"))
    assert ring.find(ALICE)
    clock.now = 2.0
    with pytest.raises(Unauthenticated):
        ring.find(ALICE)
    assert ring.find("another-0123456789").key.name == "alice"
    # What stayed keeps what it has used.
    assert ring.find(CAROL) is busy
    keys_file.write_text("alice short")
    clock.now = 4.0
    with caplog.at_level(logging.ERROR, "segserve"):
        assert ring.find(CAROL) is busy
    assert "line 1" in caplog.text
    assert "short" not in caplog.text.replace("shorter", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("alice", "line 1: expected NAME KEY"),
        (f"# one\n\nalice {ALICE}\nalice {BOB}", "line 4: there is a key 'alice' already"),
        ("alice tooshort", "line 1: the key is shorter than 16"),
        ("alice sha256:12", "64 hexadecimal digits"),
        (f"alice {ALICE} rest of it", "only requests_per_second=N and concurrent=N"),
        (f"alice {ALICE} concurrent=0", "concurrent must be a positive number"),
        (f"alice {ALICE} requests_per_second=many", "requests_per_second must be a positive"),
    ],
)
def test_a_broken_line_is_named_and_its_key_is_not(text: str, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message) as error:
        parse_keys(text, Path("keys.txt"))
    assert not any(secret in str(error.value) for secret in (ALICE, BOB, "tooshort", "rest"))


def test_an_absent_file_stops_the_start(repository: Path) -> None:
    settings = free_ports(repository).model_copy(update={"api_keys_file": Path("absent")})
    with (
        pytest.raises(InvalidSetting, match="api_keys_file: cannot read absent"),
        ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))),
    ):
        pass


@pytest.fixture
def guarded(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(FILE)
    settings = free_ports(repository).model_copy(update={"api_keys_file": path})
    engine = FakeEngine(MODEL_SIZE)
    with ServerThread(settings, serve_fake(engine)) as server:
        yield Served(server, engine)


def test_http_asks_for_a_key(guarded: Served, capfd: pytest.CaptureFixture[str]) -> None:
    with httpx.Client(base_url=f"http://{guarded.http}") as http:
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics"):
            assert http.get(path).status_code == 200
        for headers in ({}, {"X-API-Key": "wrong-0123456789"}, {"Authorization": f"Basic {ALICE}"}):
            answer = http.post(SEGMENT, content=DATA, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "0123456789" not in answer.text
            assert http.get("/v2", headers=headers).status_code == 401
            assert http.get("/nowhere", headers=headers).status_code == 401
        for headers in ({"X-API-Key": ALICE}, {"Authorization": f"bearer {ALICE}"}):
            assert http.post(SEGMENT, content=DATA, headers=headers).status_code == 200
        page = http.get("/metrics").text
        assert 'segserve_rejected_total{model="_unknown",reason="unauthenticated"} 9' in page
        assert "0123456789" not in page
        bob = {"X-API-Key": BOB}
        assert http.post(SEGMENT, content=DATA, headers=bob).status_code == 200
        answer = http.post(SEGMENT, content=DATA, headers=bob)
        assert (answer.status_code, answer.json()["code"]) == (429, "key_limit_exceeded")
        assert 900 < int(answer.headers["retry-after"]) <= 1000
        assert "requests_per_second" in answer.json()["error"]
    out = capfd.readouterr()
    assert not any(key in out.err + out.out for key in (ALICE, BOB))


def limited(served: Served, model: str) -> float:
    labels = {"model": model, "reason": "key_limit"}
    found = served.server.metrics.registry.get_sample_value("segserve_rejected_total", labels)
    return found or 0.0


def test_concurrency_is_the_keys_own(guarded: Served) -> None:
    before, counted = len(guarded.engine.batch_sizes), limited(guarded, "_unknown")
    guarded.engine.hold.clear()
    carol, alice = {"X-API-Key": CAROL}, {"X-API-Key": ALICE}
    with httpx.Client(base_url=f"http://{guarded.http}") as http:
        with ThreadPoolExecutor() as pool:
            held = pool.submit(http.post, SEGMENT, content=DATA, headers=carol)
            wait_for(lambda: len(guarded.engine.batch_sizes) > before)
            answer = http.post(SEGMENT, content=DATA, headers=carol)
            other = pool.submit(http.post, SEGMENT, content=DATA, headers=alice)
            guarded.engine.hold.set()
            assert (answer.status_code, answer.json()["code"]) == (429, "key_limit_exceeded")
            assert "concurrent in the setting api_keys_file" in answer.json()["error"]
            assert answer.headers["retry-after"] == "1"
            assert limited(guarded, "_unknown") == counted + 1
            assert [held.result().status_code, other.result().status_code] == [200, 200]
        assert http.post(SEGMENT, content=DATA, headers=carol).status_code == 200


def test_grpc_asks_for_a_key(guarded: Served) -> None:
    request = pb.SegmentRequest(model="bands", image=DATA, format="raw")
    with grpc.insecure_channel(guarded.grpc) as channel:
        segmenter = segserve_pb2_grpc.SegmenterStub(channel)
        oip = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert oip.ServerReady(service_pb2.ServerReadyRequest()).ready
        for metadata in ((), (("x-api-key", "wrong-0123456789"),)):
            for begin in (
                lambda m: segmenter.Segment(request, metadata=m),
                lambda m: oip.ModelMetadata(service_pb2.ModelMetadataRequest(), metadata=m),
                lambda m: next(segmenter.SegmentStream(iter([request]), metadata=m)),
            ):
                with pytest.raises(grpc.RpcError) as error:
                    begin(metadata)
                assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
                assert dict(error.value.trailing_metadata())["segserve-code"] == "unauthenticated"
        for metadata in ((("x-api-key", ALICE),), (("authorization", f"Bearer {ALICE}"),)):
            assert len(segmenter.Segment(request, metadata=metadata).body) == 32 * 48
        # A stream's frames count one by one.
        frames = list(segmenter.SegmentStream(iter([request] * 3), metadata=(("x-api-key", BOB),)))
        assert [frame.error.code for frame in frames] == ["", *["key_limit_exceeded"] * 2]
        assert limited(guarded, "bands") == 2
        with pytest.raises(grpc.RpcError) as error:
            segmenter.Segment(request, metadata=(("x-api-key", BOB),))
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(error.value.trailing_metadata())["retry-after"]) > 900
