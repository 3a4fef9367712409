"""Inference bodies that nobody meant: an error that says so, never one of the server's."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.band_model import Served, bands

PIXELS = bands(32, 48).tobytes()
INFER = "/v2/models/bands/infer"
LENGTH = "Inference-Header-Content-Length"
VALID = {
    "id": "a",
    "parameters": {"priority": 1},
    "inputs": [
        {"name": "image", "shape": [1, 32, 48, 3], "datatype": "UINT8",
         "parameters": {"binary_data_size": len(PIXELS)}}
    ],
    "outputs": [{"name": "mask", "parameters": {"binary_data": True}}],
}  # fmt: skip
FIELDS = [
    "id", "parameters", "inputs", "outputs", "name", "shape", "datatype", "data", "timeout",
    "priority", "binary_data", "binary_data_size", "binary_data_output", "shared_memory_region",
    "shared_memory_byte_size", "shared_memory_offset", "sequence_id", "classification", "color",
]  # fmt: skip
WORDS = ["image", "mask", "logits", "png", "UINT8", "BYTES", "FP32", "INT64", "", "aGk=", "\ud800"]

numbers = st.one_of(
    st.integers(-2, 70_000),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, 10**30, 10**4000, -(2**63) - 1]),
    st.floats(allow_nan=True, allow_infinity=True),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, st.sampled_from(WORDS), st.text(max_size=5))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
    ),
    max_leaves=8,
)


@st.composite
def heads(draw: st.DrawFn) -> object:
    """The valid one with up to three places changed, added or taken away; or anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(values)
    head = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        place: object = head
        # Down to some level, then a change there.
        for _ in range(draw(st.integers(0, 3))):
            inner = [v for v in _children(place) if isinstance(v, (dict, list))]
            if inner:
                place = draw(st.sampled_from(inner))
        if isinstance(place, dict):
            name = draw(st.sampled_from([*place, *FIELDS]))
            if name in place and draw(st.booleans()):
                del place[name]
            else:
                place[name] = draw(values)
        elif isinstance(place, list):
            place.insert(draw(st.integers(0, len(place))), draw(values))
    return head


def _children(place: object) -> list[object]:
    if isinstance(place, dict):
        return list(place.values())
    return list(place) if isinstance(place, list) else []


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, str | None]:
    """A body and the header that says how long its JSON is."""
    text = json.dumps(draw(heads())).encode()
    data = draw(st.sampled_from([PIXELS, b"", PIXELS[:-1], PIXELS + b"x", b"\xff\xff\xff\xff"]))
    body = text + data
    cut = draw(st.one_of(st.just(len(body)), st.integers(0, len(body))))
    lengths = st.one_of(
        st.just(str(len(text))),
        st.none(),
        st.integers(-1, len(body) + 1).map(str),
        st.sampled_from(["", "x", "9" * 5000, "1e3", "0", "٣", "+1"]),
    )
    return body[:cut], draw(lengths)


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{served.http}", timeout=30) as client:
        yield client


def check(answer: httpx.Response) -> None:
    if answer.status_code == 200:
        return
    assert 400 <= answer.status_code < 500 or answer.status_code == 501, answer.text
    error = answer.json()
    assert set(error) == {"error", "code"}
    assert error["error"]
    assert (error["code"] == "unsupported") == (answer.status_code == 501)


relaxed = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(request=bodies())
def test_json_and_binary(http: httpx.Client, request: tuple[bytes, str | None]) -> None:
    body, length = request
    headers = {} if length is None else {LENGTH: length.encode()}
    check(http.post(INFER, content=body, headers=headers))


@relaxed
@given(body=st.binary(max_size=300), length=st.sampled_from([None, "0", "1", "10"]))
def test_anything(http: httpx.Client, body: bytes, length: str | None) -> None:
    answer = http.post(INFER, content=body, headers={} if length is None else {LENGTH: length})
    check(answer)
    assert answer.status_code != 200


@relaxed
@given(
    raw=st.lists(st.one_of(st.binary(max_size=8), st.integers(0, 2**32 - 1)), max_size=4),
    shape=st.lists(st.integers(0, 3), max_size=3),
)
def test_bytes_elements(http: httpx.Client, raw: list[bytes | int], shape: list[int]) -> None:
    """Lengths that lie: each element of BYTES is a length and that many bytes."""
    data = b"".join(r if isinstance(r, bytes) else r.to_bytes(4, "little") for r in raw)
    item = {"name": "image", "shape": shape, "datatype": "BYTES",
            "parameters": {"binary_data_size": len(data)}}  # fmt: skip
    text = json.dumps({"inputs": [item]}).encode()
    answer = http.post(INFER, content=text + data, headers={LENGTH: str(len(text))})
    check(answer)
    assert answer.status_code != 200


@relaxed
@given(body=values.map(json.dumps), path=st.sampled_from(
    ["repository/index", "repository/models/bands/load", "repository/models/bands/unload",
     "systemsharedmemory/region/r/register"]))  # fmt: skip
def test_control_bodies(http: httpx.Client, body: str, path: str) -> None:
    check(http.post(f"/v2/{path}", content=body))
