"""Walks over the bytes of a message before it is parsed, and bounds what a parser would make of it.

A message of a few megabytes can hold millions of empty fields, each of which becomes an object:
parsing takes seconds then, and a hundred times the memory. So fields are counted first, at every
depth, by the message's own descriptor; what is longer than a budget is refused with the parser
never called. Fields that the descriptor does not know, and groups, count as well.

=================  =====================================================================
``MAX_FIELDS``     fields of a message, those of its parts included; and, on their own, the
                   numbers in all other packed fields, such as shapes
``MAX_TEXT_BYTES``  bytes of all its texts: names, formats, classes, parameters
``MAX_NUMBERS``    numbers in ``uint_contents``, which may hold the pixels of a batch
``MAX_DEPTH``      messages and groups inside each other
=================  =====================================================================

A parser holds the interpreter until it is done, also on another thread, and makes eight million
numbers in 0.1 to 0.6 s. So it never sees ``uint_contents``: they are renumbered to a field that is
unknown to it, which it keeps as bytes, and are read from there by NumPy.

Fields of type ``bytes`` (images, tensors) are skipped, not read: their length is bounded by
``max_request_bytes`` alone. A walk is over after ``MAX_FIELDS`` steps whatever the bytes are.

Source: protobuf.dev/programming-guides/encoding.

What a message says of the inference that it asks for is found in the same walk: a refusal by the
request's head must not cost a copy of its tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final, TypeAlias

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from segserve_client.proto import segserve_pb2 as pb
from tritonclient.grpc import service_pb2 as oip

from serving.admission.admission import RequestHead
from serving.errors import InvalidRequest, TooLarge
from serving.parsing import parse_version

# The largest honest message names some hundred classes; a batch of encoded images has a few dozen.
MAX_FIELDS: Final = 4096
MAX_TEXT_BYTES: Final = 64 << 10
# A UINT8 tensor of 1024x2048x3 has 6.3 million.
MAX_NUMBERS: Final = 8 << 20
# The deepest message of ours has four levels; of a group nothing is known.
MAX_DEPTH: Final = 16

VARINT, FIXED64, LENGTH, START_GROUP, END_GROUP, FIXED32 = range(6)
FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
NUMBER_BYTES = {
    **dict.fromkeys(
        (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64),
        8,
    ),
    **dict.fromkeys(
        (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_SFIXED32),
        4,
    ),
}
# The one field that may hold millions of numbers, and the tag under which a parser gets to see it:
# of a field that its message does not have, and as long on the wire as its own.
PIXELS = ("inference.InferTensorContents", "uint_contents")
UNPARSED_NUMBER: Final = 15
UNPARSED = UNPARSED_NUMBER << 3 | LENGTH
# What is counted at a time: a stranger's numbers must not be copied to be counted.
COUNT_BYTES = 1 << 20

# Number and wire type of a field: one of another wire type is unknown to a parser.
Key: TypeAlias = tuple[int, int]
Fields: TypeAlias = Mapping[Key, bytes | int]

NOT_A_MESSAGE = "the bytes are not a message of this call; see the .proto file"


@dataclass(frozen=True)
class Shape:
    """The fields that a message type may hold, by their tag (number and wire type in one).

    Attributes:
        messages: the shapes of fields that hold messages.
        texts: tags of strings.
        numbers: of packed numbers, the bytes that each takes; 0 where that varies.
        pixels: tags of packed numbers of which there may be millions.
    """

    name: str
    messages: dict[int, Shape] = field(default_factory=dict)
    texts: set[int] = field(default_factory=set)
    numbers: dict[int, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    pixels: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Scanned:
    """The result of a walk over one message.

    Attributes:
        fields: those that were wanted; of one that is repeated, the last.
        data: the message as it goes to the parser.
    """

    fields: Fields
    data: bytes


@cache
def shape_of(descriptor: Descriptor) -> Shape:
    """Returns the shape of a message type and, inside it, of all that it is made of."""
    return _build(descriptor, {})


def _build(descriptor: Descriptor, known: dict[str, Shape]) -> Shape:
    if descriptor.full_name in known:
        return known[descriptor.full_name]
    shape = known[descriptor.full_name] = Shape(descriptor.name)
    for item in descriptor.fields:
        tag = item.number << 3 | LENGTH
        shape.names[tag] = item.name
        if item.message_type is not None:
            shape.messages[tag] = _build(item.message_type, known)
        elif item.type == FieldDescriptor.TYPE_STRING:
            shape.texts.add(tag)
        elif item.type != FieldDescriptor.TYPE_BYTES:
            shape.numbers[tag] = NUMBER_BYTES.get(item.type, 0)
            if (descriptor.full_name, item.name) == PIXELS:
                shape.pixels.add(tag)
    return shape


def scan(data: bytes, shape: Shape, wanted: Collection[Key] = ()) -> Scanned:
    """Counts what a message holds, and finds those of its top-level texts and integers that are
    ``wanted``.

    Raises:
        TooLarge: more than a budget of this module; the text names it.
        InvalidRequest: the bytes are not a well-formed message.
    """
    walk = _Walk(data)
    return Scanned(walk.run(shape, wanted), walk.hide_pixels())


class _Walk:
    """One walk over one message."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.text_bytes = 0
        self.numbers = 0
        self.pixels = 0
        # Where the tags of the large fields are.
        self.pixels_at: list[int] = []

    def hide_pixels(self) -> bytes:
        """Returns the message with its large fields under the tag ``UNPARSED``."""
        parts, done = [], 0
        for at in self.pixels_at:
            # A tag may be written with empty bytes behind it; all of its bits are in the first.
            parts += [self.data[done:at], bytes([self.data[at] & 0x80 | UNPARSED])]
            done = at + 1
        return b"".join([*parts, self.data[done:]]) if parts else self.data

    def run(self, shape: Shape, wanted: Collection[Key]) -> Fields:
        found: dict[Key, bytes | int] = {}
        data, at, end = self.data, 0, len(self.data)
        # Where the messages around this one end, and their shapes; None: inside an unknown group.
        outer: list[tuple[int, Shape | None]] = []
        inner: Shape | None = shape
        for _ in range(MAX_FIELDS + 1):
            while at == end and outer and inner is not None:
                end, inner = outer.pop()
            if at == end:
                if inner is None:
                    raise InvalidRequest(NOT_A_MESSAGE)
                return found
            tag_at = at
            tag, at = self._read_varint(at, end)
            kind = tag & 7
            start = at
            if kind == VARINT:
                value, at = self._read_varint(at, end)
                if not outer and (key := (tag >> 3, kind)) in wanted:
                    found[key] = value
                continue
            if kind == LENGTH:
                size, start = self._read_varint(at, end)
            elif kind == START_GROUP:
                self._check_depth(outer)
                outer.append((end, inner))
                inner = None
                continue
            elif kind == END_GROUP:
                if inner is not None or not outer:
                    raise InvalidRequest(NOT_A_MESSAGE)
                _, inner = outer.pop()
                continue
            else:
                size = FIXED_BYTES.get(kind, len(data))
            at = start + size
            if at > end:
                raise InvalidRequest(NOT_A_MESSAGE)
            if inner is None or kind != LENGTH:
                continue
            if (part := inner.messages.get(tag)) is not None:
                self._check_depth(outer)
                outer.append((end, inner))
                at, end, inner = start, at, part
            elif tag in inner.texts:
                self._count_text(size, inner.names[tag])
                if not outer and (key := (tag >> 3, kind)) in wanted:
                    found[key] = data[start:at]
            elif tag in inner.numbers:
                if tag in inner.pixels:
                    self._count_pixels(start, at, inner.names[tag])
                    self.pixels_at.append(tag_at)
                else:
                    self._count_numbers(at - start, inner.numbers[tag], inner.names[tag])
            elif tag == UNPARSED and inner.pixels:
                raise InvalidRequest(NOT_A_MESSAGE)
        raise TooLarge(
            f"the message has more than {MAX_FIELDS} fields, the limit of one request; "
            f"send pixels as one packed field or in raw_input_contents",
            reason="message_fields",
        )

    def _check_depth(self, outer: list[tuple[int, Shape | None]]) -> None:
        if len(outer) >= MAX_DEPTH:
            raise TooLarge(
                f"the message is nested more than {MAX_DEPTH} deep", reason="message_fields"
            )

    def _count_text(self, size: int, name: str) -> None:
        self.text_bytes += size
        if self.text_bytes > MAX_TEXT_BYTES:
            raise TooLarge(
                f"the texts of the message are longer than {MAX_TEXT_BYTES} bytes together, the "
                f"limit of one request; the last one read, {name}, has {size}",
                reason="message_fields",
            )

    def _count_numbers(self, length: int, size: int, name: str) -> None:
        # None takes less than a byte.
        self.numbers += length // (size or 1)
        if self.numbers > MAX_FIELDS:
            raise TooLarge(
                f"{name} holds too many numbers: outside of uint_contents the limit of one request "
                f"is {MAX_FIELDS}, or as many bytes; send the input 'image' as UINT8, in "
                f"uint_contents or in raw_input_contents",
                reason="message_fields",
            )

    def _count_pixels(self, start: int, end: int, name: str) -> None:
        if start == end:
            return
        bits = np.frombuffer(self.data, np.int8, end - start, start)
        for first in range(0, len(bits), COUNT_BYTES):
            # The last byte of each number, and no other, has its highest bit unset.
            self.pixels += int(np.count_nonzero(bits[first : first + COUNT_BYTES] >= 0))
            if self.pixels > MAX_NUMBERS:
                raise TooLarge(
                    f"{name} holds more than {MAX_NUMBERS} numbers, the limit of one request; "
                    f"send the tensor's bytes in raw_input_contents",
                    reason="message_fields",
                )
        if bits[-1] < 0:
            raise InvalidRequest(NOT_A_MESSAGE)

    def _read_varint(self, at: int, end: int) -> tuple[int, int]:
        """Returns the number, which is never negative, and where it ends."""
        data = self.data
        if at < end and (byte := data[at]) < 0x80:
            return byte, at + 1
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise InvalidRequest(NOT_A_MESSAGE)


SEGMENT = "/segserve.v1.Segmenter/Segment"
INFER = "/inference.GRPCInferenceService/ModelInfer"


def _find(message: type[Message], **kinds: int) -> tuple[Key, ...]:
    fields = message.DESCRIPTOR.fields_by_name
    return tuple((fields[name].number, kind) for name, kind in kinds.items())


_SEGMENT = _find(pb.SegmentRequest, model=LENGTH, version=VARINT, format=LENGTH)
_INFER = _find(oip.ModelInferRequest, model_name=LENGTH, model_version=LENGTH)


_WANTED = {SEGMENT: _SEGMENT, INFER: _INFER}


def list_wanted(method: str) -> tuple[Key, ...]:
    """Returns the fields that :func:`read_head` needs of a method's messages."""
    return _WANTED.get(method, ())


def read_head(
    method: str, fields: Fields, timeout_s: float | None, size: int
) -> RequestHead | None:
    """Returns the inference that a message of ``size`` bytes asks for; None where the call is none,
    or not one that can be answered."""
    try:
        if method == SEGMENT:
            return _read_segment(fields, timeout_s, size)
        if method == INFER:
            return _read_infer(fields, timeout_s, size)
    except (ValueError, InvalidRequest):
        pass
    return None


def _read_segment(fields: Fields, timeout_s: float | None, size: int) -> RequestHead:
    model, version, format = (fields.get(key) for key in _SEGMENT)
    formats = tuple(_text(format).split(",")) if format else ("png",)
    number = version if isinstance(version, int) and version else None
    return RequestHead(_text(model), number, timeout_s, 0, formats, size, is_certain=True)


def _read_infer(fields: Fields, timeout_s: float | None, size: int) -> RequestHead:
    model, version = (_text(fields.get(key)) for key in _INFER)
    number = parse_version(version)
    return RequestHead(model, number, timeout_s, request_bytes=size, is_certain=True)


def _text(value: bytes | int | None) -> str:
    return value.decode() if isinstance(value, bytes) else ""
