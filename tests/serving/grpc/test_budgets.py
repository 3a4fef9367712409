"""What a gRPC message may hold: bounded by a walk over its bytes, before anything is parsed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from segserve_client.proto import segserve_pb2 as pb
from tritonclient.grpc import service_pb2 as oip

from serving.errors import InvalidRequest, TooLarge
from serving.grpc.interceptor import CallInterceptor
from serving.grpc.wire import MAX_DEPTH, MAX_FIELDS, MAX_NUMBERS, MAX_TEXT_BYTES, scan, shape_of
from tests.support.band_model import MODEL_SIZE, Served, band_labels, bands, encode
from tests.support.raw_grpc import (
    DESCRIBE,
    INFER,
    INFER_STREAM,
    METHODS,
    SEGMENT,
    SEGMENT_STREAM,
    call,
    number_of,
    open_channel,
    part,
    tag,
)

MANY = 3_000_000
IMAGE_METHODS = (INFER, INFER_STREAM, SEGMENT, SEGMENT_STREAM)
PIXELS = bands(MODEL_SIZE.height, MODEL_SIZE.width)[None]
SHAPE = list(PIXELS.shape)


@pytest.fixture(scope="module")
def channel(served: Served) -> Iterator[grpc.Channel]:
    with open_channel(served.grpc) as channel:
        yield channel


def fields_of(message: type[Message], name: str, count: int = MANY) -> bytes:
    """A message whose field ``name`` is there ``count`` times, empty."""
    return tag(number_of(message, name), 2) + b"\0" if count == 1 else (
        (tag(number_of(message, name), 2) + b"\0") * count
    )  # fmt: skip


def input_of(contents: bytes) -> bytes:
    """A ModelInferRequest whose one input has these contents."""
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=SHAPE)
    request = oip.ModelInferRequest(model_name="bands")
    inner = tensor.SerializeToString() + part(number_of(type(tensor), "contents"), contents)
    return request.SerializeToString() + part(number_of(type(request), "inputs"), inner)


INFER_FIELDS = ("inputs", "outputs", "parameters", "raw_input_contents", "model_name", "id")
SEGMENT_FIELDS = ("classes", "tta", "format", "model", "image", "image_format")


@pytest.mark.parametrize("method", [INFER, INFER_STREAM])
@pytest.mark.parametrize("name", INFER_FIELDS)
def test_millions_of_fields_of_an_inference(channel: grpc.Channel, method: str, name: str) -> None:
    for compression in (None, grpc.Compression.Gzip):
        ended = call(
            channel, method, fields_of(oip.ModelInferRequest, name), compression=compression
        )
        assert ended.code == "INVALID_ARGUMENT"
        assert f"more than {MAX_FIELDS} fields" in ended.text
        assert ended.trailing["segserve-code"] == "too_large"


@pytest.mark.parametrize("method", [SEGMENT, SEGMENT_STREAM])
@pytest.mark.parametrize("name", SEGMENT_FIELDS)
def test_millions_of_fields_of_segment(channel: grpc.Channel, method: str, name: str) -> None:
    ended = call(channel, method, fields_of(pb.SegmentRequest, name))
    assert (ended.code, f"more than {MAX_FIELDS}" in ended.text) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize("method", METHODS)
def test_millions_of_fields_that_nobody_knows(channel: grpc.Channel, method: str) -> None:
    # Within ``max_control_bytes`` where the method takes no image.
    count = MANY // 3 if method in IMAGE_METHODS else 10_000
    unknown = {
        "numbers": (tag(500, 0) + b"\1") * count,
        "texts": (tag(500, 2) + b"\0") * count,
        "fixed": (tag(500, 5) + bytes(4)) * count,
        "groups": (tag(500, 3) + tag(500, 4)) * count,
        "nested groups": tag(500, 3) * count,
    }
    for name, data in unknown.items():
        ended = call(channel, method, data)
        assert (name, ended.code) == (name, "INVALID_ARGUMENT")
        assert "more than" in ended.text
        assert ended.trailing["x-request-id"]


@pytest.mark.parametrize(
    "contents",
    [
        fields_of(oip.InferTensorContents, "bytes_contents"),
        (tag(4, 0) + b"\1") * MANY,  # uint_contents, not packed
        part(4, b"\1" * (MAX_NUMBERS + 1)),
        part(4, b"\xff\1" * (MAX_NUMBERS + 1)),
        part(4, b"\1" * 5_000_000) * 2,
        part(6, bytes(4 * (MAX_NUMBERS + 1))),  # fp32_contents
        part(1, b"\1" * (MAX_NUMBERS + 1)),  # bool_contents
    ],
    ids=["bytes", "unpacked", "packed", "two bytes each", "in parts", "fp32", "bool"],
)
def test_millions_of_contents(channel: grpc.Channel, contents: bytes) -> None:
    ended = call(channel, INFER, input_of(contents))
    assert ended.code == "INVALID_ARGUMENT"
    assert str(MAX_FIELDS) in ended.text or str(MAX_NUMBERS) in ended.text
    assert "raw_input_contents" in ended.text


def test_a_name_of_fifty_megabytes(channel: grpc.Channel) -> None:
    for method, number in ((INFER, 1), (SEGMENT, 1), (DESCRIBE, 1)):
        ended = call(channel, method, part(number, b"a" * 50_000_000))
        assert ended.code == "INVALID_ARGUMENT"
        limit = "max_control_bytes" if method == DESCRIBE else f"longer than {MAX_TEXT_BYTES} bytes"
        assert limit in ended.text


@pytest.mark.parametrize("letter", ["a", "ж", "模", "\0", "😀", "\n"])
def test_a_long_name_comes_back_short(channel: grpc.Channel, letter: str) -> None:
    """A client takes 8 kB of metadata; what is not ASCII is three times as long in there."""
    name = letter * (60_000 // len(letter.encode()))
    for method, message in (
        (INFER, oip.ModelInferRequest(model_name=name)),
        (SEGMENT, pb.SegmentRequest(model=name)),
        (DESCRIBE, pb.DescribeRequest(model=name)),
    ):
        ended = call(channel, method, message.SerializeToString())
        assert ended.code == "NOT_FOUND", ended
        assert ended.text.startswith("unknown model '")
        # The remedy stands at the end.
        assert ended.text.endswith("bands")
        assert "more characters" in ended.text
        assert ended.trailing["segserve-code"] == "model_not_found"


def test_honest_messages_are_within_every_budget(channel: grpc.Channel) -> None:
    classes = [f"a class with quite a long name, number {index}" for index in range(256)]
    segment = pb.SegmentRequest(
        model="bands", image=encode(PIXELS[0]), format="raw", classes=["band1"], tta=["flip"]
    )
    assert call(channel, SEGMENT, segment.SerializeToString()).code == "OK"
    segment.ClearField("classes")
    segment.classes.extend(classes)
    assert "class" in call(channel, SEGMENT, segment.SerializeToString()).text
    assert "more than" not in call(channel, SEGMENT, segment.SerializeToString()).text
    large = oip.ModelInferRequest(model_name="bands")
    large.inputs.add(name="image", datatype="UINT8", shape=[1, 1024, 2048, 3])
    large.inputs[0].contents.uint_contents.extend(bytes(1024 * 2048 * 3))
    assert "does not fit model 'bands'" in call(channel, INFER, large.SerializeToString()).text


def test_contents_are_the_tensor(channel: grpc.Channel) -> None:
    """Numbers above 127 take two bytes each on the wire, the others one."""
    request = oip.ModelInferRequest(model_name="bands")
    request.outputs.add(name="mask")
    request.inputs.add(name="image", datatype="UINT8", shape=SHAPE)
    request.inputs[0].contents.uint_contents.extend(PIXELS.reshape(-1).tolist())
    assert {int(v) < 128 for v in PIXELS.reshape(-1)} == {True, False}
    ended = call(channel, INFER, request.SerializeToString())
    answer = oip.ModelInferResponse.FromString(ended.answers[0])
    labels = np.frombuffer(answer.raw_output_contents[0], np.uint8).reshape(1, 32, 48)
    np.testing.assert_array_equal(labels[0], band_labels(32, 48))


@pytest.mark.parametrize("value", [256, 384, 16_384, 2**32 - 1])
def test_a_value_that_is_no_uint8(channel: grpc.Channel, value: int) -> None:
    for values in ([value] * PIXELS.size, [255, value] + [0] * (PIXELS.size - 2)):
        request = oip.ModelInferRequest(model_name="bands")
        request.inputs.add(name="image", datatype="UINT8", shape=SHAPE)
        request.inputs[0].contents.uint_contents.extend(values)
        ended = call(channel, INFER, request.SerializeToString())
        assert (ended.code, "above 255" in ended.text) == ("INVALID_ARGUMENT", True)


def test_contents_in_parts_and_with_long_tags(channel: grpc.Channel) -> None:
    """Legal on the wire, though nobody writes it: the parts belong together, in their order."""
    values, shape = PIXELS.reshape(-1), shape_of(oip.ModelInferRequest.DESCRIPTOR)
    packed = b"".join(bytes([v]) if v < 128 else bytes([v, 1]) for v in values.tolist())
    half = packed[:1000] if packed[999] < 128 else packed[:1001]
    contents = b"\xa2\x00" + part(4, half)[1:] + part(4, b"") + part(4, packed[len(half) :])
    parsed = oip.ModelInferRequest.FromString(input_of(contents))
    assert parsed.inputs[0].contents.uint_contents == values.tolist()
    ended = call(channel, INFER, input_of(contents))
    answer = oip.ModelInferResponse.FromString(ended.answers[0])
    np.testing.assert_array_equal(
        np.frombuffer(answer.raw_output_contents[0], np.uint8), band_labels(32, 48).reshape(-1)
    )
    # A parser never sees the numbers, whose objects would keep the interpreter for long.
    hidden = oip.ModelInferRequest.FromString(scan(input_of(contents), shape).data)
    assert not hidden.inputs[0].contents.uint_contents


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (part(4, b"\1\xff"), "not a message"),  # ends inside a number
        (part(4, b"\1") + tag(4, 0) + b"\1", "packed in part"),
        (part(15, bytes(PIXELS.size)), "not a message"),  # the number that hides them
        (part(4, b"\xff" * PIXELS.size + b"\1"), "above 255"),
        (part(4, b"\1") + part(8, b"a"), "not bytes_contents"),
        (part(4, b""), "takes 4608 bytes, got 0"),
    ],
)
def test_contents_that_are_not_numbers(channel: grpc.Channel, contents: bytes, text: str) -> None:
    ended = call(channel, INFER, input_of(contents))
    assert (ended.code, text in ended.text) == ("INVALID_ARGUMENT", True), ended


@pytest.mark.parametrize("number", [2, 3], ids=["datatype", "shape"])
@pytest.mark.parametrize("size", [b"\1", b"\xff" * 8 + b"\x7f"])
def test_millions_in_a_datatype_or_a_shape(channel: grpc.Channel, number: int, size: bytes) -> None:
    """Each would become an object, and a word of the error's text, while all others wait."""
    inner = part(1, b"image") + part(number, size * 5_000_000)
    for method in (INFER, INFER_STREAM):
        ended = call(channel, method, part(1, b"bands") + part(5, inner))
        assert ended.code == "INVALID_ARGUMENT"
        assert ended.trailing["segserve-code"] == "too_large"


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "", "uint8"])
def test_another_datatype_is_told_what_the_model_takes(
    channel: grpc.Channel, datatype: str
) -> None:
    request = oip.ModelInferRequest(model_name="bands")
    request.inputs.add(name="image", datatype=datatype, shape=SHAPE)
    for contents in ("fp32_contents", "uint_contents", None):
        request.inputs[0].ClearField("contents")
        if contents:
            getattr(request.inputs[0].contents, contents).append(1)
        ended = call(channel, INFER, request.SerializeToString())
        assert ended.code == "INVALID_ARGUMENT"
        assert "expected UINT8 [n,32,48,3] (RGB) or BYTES [n] of encoded images" in ended.text
        assert "goes into" not in ended.text


def test_bytes_without_their_length(channel: grpc.Channel) -> None:
    request = oip.ModelInferRequest(model_name="bands", raw_input_contents=[encode(PIXELS[0])])
    request.inputs.add(name="image", datatype="BYTES", shape=[1])
    ended = call(channel, INFER, request.SerializeToString())
    assert ended.code == "INVALID_ARGUMENT"
    assert "needs its length before it" in ended.text
    request.raw_input_contents[0] = (10).to_bytes(4, "little") + b"short"
    ended = call(channel, INFER, request.SerializeToString())
    assert (ended.code, "goes beyond the end" in ended.text) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize("method", METHODS)
def test_bytes_that_are_no_message(channel: grpc.Channel, method: str) -> None:
    for data in (b"\xff", b"\x0a\x05ab", b"\x0c", tag(9, 3), b"\x0e", b"\x80" * 20):
        ended = call(channel, method, data)
        assert (data, ended.code) == (data, "INVALID_ARGUMENT")
        assert ended.trailing["x-request-id"]


def test_a_defect_is_internal_and_its_cause_in_the_log_alone(
    channel: grpc.Channel,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def break_down(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("the secret cause")

    monkeypatch.setattr(type(served.server.segmenter), "segment", break_down)
    monkeypatch.setattr(type(served.server.dataplane), "find", break_down)
    for index, method in enumerate(IMAGE_METHODS):
        message = part(1, b"bands")
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "segserve"):
            ended = call(channel, method, message, metadata=[("x-request-id", f"mine-{index}")])
        assert ended.code == "INTERNAL"
        assert "secret" not in ended.text
        assert ended.trailing["segserve-code"] == "internal"
        assert ended.trailing["x-request-id"] == f"mine-{index}"
        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert f"mine-{index}" in record.getMessage()
        assert "secret cause" in record.getMessage()


@given(
    st.builds(
        oip.ModelInferRequest,
        model_name=st.text(max_size=9),
        id=st.text(max_size=9),
        parameters=st.dictionaries(
            st.text(max_size=4), st.builds(oip.InferParameter, int64_param=st.integers(-5, 2**62))
        ),
        inputs=st.lists(
            st.builds(
                oip.ModelInferRequest.InferInputTensor,
                name=st.text(max_size=4),
                shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
                contents=st.builds(
                    oip.InferTensorContents,
                    uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=4),
                    bytes_contents=st.lists(st.binary(max_size=9), max_size=3),
                    fp64_contents=st.lists(st.floats(), max_size=3),
                ),
            ),
            max_size=3,
        ),
        raw_input_contents=st.lists(st.binary(max_size=20), max_size=3),
    )
)
def test_what_a_parser_takes_is_walked_through(request: oip.ModelInferRequest) -> None:
    scan(request.SerializeToString(), shape_of(request.DESCRIPTOR))


def test_the_limits_are_inclusive() -> None:
    shape = shape_of(oip.ModelInferRequest.DESCRIPTOR)
    empty = fields_of(oip.ModelInferRequest, "outputs", 1)
    scan(empty * MAX_FIELDS, shape)
    with pytest.raises(TooLarge, match=str(MAX_FIELDS)):
        scan(empty * (MAX_FIELDS + 1), shape)
    scan(part(1, b"a" * MAX_TEXT_BYTES), shape)
    scan(part(1, b"a" * (MAX_TEXT_BYTES - 1)) + part(3, b"a"), shape)
    for data in (
        part(1, b"a" * (MAX_TEXT_BYTES + 1)),
        part(1, b"a" * MAX_TEXT_BYTES) + part(3, b"a"),
        part(1, b"a" * MAX_TEXT_BYTES) + part(6, part(1, b"a")),
    ):
        with pytest.raises(TooLarge, match="texts"):
            scan(data, shape)
    for unit in (b"\1", b"\xff\1", b"\xff\xff\xff\xff\x0f"):
        scan(input_of(part(4, unit * MAX_NUMBERS)), shape)
        with pytest.raises(TooLarge, match=str(MAX_NUMBERS)):
            scan(input_of(part(4, unit * (MAX_NUMBERS + 1))), shape)
    for unit, kind in (
        (b"\1", 1),
        (b"\1", 2),
        (b"\1", 3),
        (b"\1", 5),
        (bytes(4), 6),
        (bytes(8), 7),
    ):
        # The shape's sizes count too.
        scan(input_of(part(kind, unit * (MAX_FIELDS - len(SHAPE)))), shape)
        with pytest.raises(TooLarge, match=str(MAX_FIELDS)):
            scan(input_of(part(kind, unit * (MAX_FIELDS - len(SHAPE) + 1))), shape)
    groups = tag(99, 3) * MAX_DEPTH + tag(99, 4) * MAX_DEPTH
    scan(groups, shape)
    with pytest.raises(TooLarge, match="deep"):
        scan(tag(99, 3) + groups + tag(99, 4), shape)
    with pytest.raises(InvalidRequest):
        scan(tag(99, 4), shape)


@pytest.mark.parametrize("method", METHODS)
def test_only_inferences_take_large_messages(channel: grpc.Channel, method: str) -> None:
    """All others hold names and numbers, also those that take no key."""
    large = part(500, bytes(1 << 20))
    ended = call(channel, method, large)
    is_control = method not in IMAGE_METHODS
    assert ("setting max_control_bytes" in ended.text) == is_control
    assert not is_control or ended.code == "INVALID_ARGUMENT"


def test_what_is_refused_is_never_parsed(
    channel: grpc.Channel, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def parse(*arguments: object) -> Message:
        await asyncio.sleep(0)
        raise AssertionError("it was parsed")

    monkeypatch.setattr(CallInterceptor, "_parse", parse)
    ended = call(channel, INFER, fields_of(oip.ModelInferRequest, "outputs"))
    assert ended.code == "INVALID_ARGUMENT"
    for message in (oip.ModelInferRequest(model_name="nope"), pb.SegmentRequest(model="nope")):
        method = INFER if isinstance(message, oip.ModelInferRequest) else SEGMENT
        ended = call(channel, method, message.SerializeToString() + part(500, bytes(20 << 20)))
        assert (ended.code, ended.text[:20]) == ("NOT_FOUND", "unknown model 'nope'")
