"""Open Inference Protocol over HTTP: JSON, and JSON followed by binary tensors.

Everything here runs on a pool thread. A request's JSON is bounded before anything is built of it
(``max_json_bytes``, without the data of tensors), and the data is read only once its shape is
known to be the model's.

Source: Open Inference Protocol v2; Triton's extension_binary_data.md.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeAlias, TypeVar, overload

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Raw, Struct

from serving.errors import InvalidRequest
from serving.http.json_data import CutJson, cut_data, read_files, read_numbers
from serving.models.model import Model
from serving.oip.image_tensors import INPUT, check_input, check_input_names
from serving.oip.messages import InferRequest, InferResponse, OutputTensor, RequestedOutput
from serving.oip.parameters import (
    EMPTY_FINAL_RESPONSE,
    Parameters,
    ParameterValue,
    read_count,
    read_flag,
    read_place,
    read_request_parameters,
    refuse_classification,
)
from serving.oip.shared_memory import SharedMemory
from serving.oip.tensors import Buffer, Tensor, bytes_tensor, read_tensor
from serving.palette import LabelMap
from serving.parsing import read_length

HEADER_LENGTH = "Inference-Header-Content-Length"
Dimension = Annotated[int, Meta(ge=0, lt=2**31)]
WHAT = "inference request"
# Of outputs in JSON and in base64, in one call of a C function: each keeps the interpreter's lock.
NUMBERS_AT_ONCE = 1 << 14
BASE64_AT_ONCE = 3 << 18


Body = TypeVar("Body", bound=msgspec.Struct)
Json = TypeVar("Json")
Text: TypeAlias = bytes | memoryview | msgspec.Raw

BOM = b"\xef\xbb\xbf"
# Of a field that is not there; a union with None is not msgspec's to make of raw JSON.
NULL = msgspec.Raw(b"null")
# Nobody sends more; a map of a million small ones is some hundred bytes each.
MAX_PARAMETERS = 64
_OBJECT = dict[str, msgspec.Raw]
_OBJECTS = list[dict[str, msgspec.Raw]] | None
_PLACE = re.compile(r"^(.*) - at `\$\.?(.*)`$", re.DOTALL)


@overload
def decode(text: Text, kind: type[Json], what: str) -> Json: ...


@overload
def decode(text: Text, kind: UnionType, what: str) -> Any: ...


def decode(text: Text, kind: type[Json] | UnionType, what: str) -> Any:
    """Returns ``text`` as a value of that type.

    Args:
        what: the text is, for errors.

    Raises:
        InvalidRequest: not JSON, or a field of another type; the message says where.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{what}: {_describe(error)}") from None


def read_parameters(what: str, given: msgspec.Raw) -> dict[str, ParameterValue]:
    """Returns the protocol's ``parameters``: names, and a text, number or flag each.

    Raises:
        InvalidRequest: another value, which is named, or too many of them.
    """
    found = decode(given, dict[str, msgspec.Raw] | None, f"{what}: parameters") or {}
    if len(found) > MAX_PARAMETERS:
        raise InvalidRequest(f"{what}: {len(found)} parameters, expected at most {MAX_PARAMETERS}")
    return {
        name: decode(value, ParameterValue, f"{what}: parameter {name[:64]!r}")
        for name, value in found.items()
    }


def count_ignored(text: bytes | memoryview, kind: type[msgspec.Struct]) -> int:
    """Returns how many fields of an object, and of objects in its lists, ``kind`` does not name.

    ``text`` must have been decoded as ``kind`` before.

    Raises:
        InvalidRequest: a name that is not UTF-8, which is skipped unread where no type has it.
    """
    return _count(decode(text, _OBJECT, "a field's name"), kind)


def _count(given: Mapping[str, msgspec.Raw], kind: type[msgspec.Struct]) -> int:
    known = _known_fields(kind)
    count = 0
    for name, value in given.items():
        if name not in known:
            count += 1
        elif (inner := known[name]) is not None:
            count += sum(_count(o, inner) for o in decode(value, _OBJECTS, "a field's name") or ())
    return count


@cache
def _known_fields(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct] | None]:
    """Returns each field's name, and where it is a list of structs (or null), their type."""
    known: dict[str, type[msgspec.Struct] | None] = {}
    for field in msgspec.structs.fields(kind):
        info = msgspec.inspect.type_info(field.type)
        known[field.encode_name] = None
        for option in info.types if isinstance(info, msgspec.inspect.UnionType) else (info,):
            if isinstance(option, msgspec.inspect.ListType) and isinstance(
                option.item_type, msgspec.inspect.StructType
            ):
                known[field.encode_name] = option.item_type.cls
    return known


def _describe(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error)
    if text == "Input data was truncated":
        return "JSON is malformed: it ends too early"
    found = _PLACE.match(text)
    if found is None:
        return text[:1].lower() + text[1:] if text.startswith("Expected") else text
    place, message = found[2], found[1][:1].lower() + found[1][1:]
    return f"{place}: {message}" if place else message


class _Input(Struct, frozen=True):
    name: str
    shape: Annotated[list[Dimension], Meta(max_length=8)]
    datatype: str
    parameters: Raw = NULL
    data: Raw = NULL


class _Output(Struct, frozen=True):
    name: str
    parameters: Raw = NULL


class _Header(Struct, frozen=True):
    inputs: Annotated[list[_Input], Meta(max_length=16)]
    id: str | None = None
    parameters: Raw = NULL
    outputs: Annotated[list[_Output], Meta(max_length=64)] | None = None


@dataclass(frozen=True)
class InferReader:
    """Reads the bodies of one server.

    Args:
        max_json_bytes: of a body's JSON without the data of tensors.
        ignored: called with how many fields of a request are not the protocol's.
    """

    memory: SharedMemory
    max_json_bytes: int
    ignored: Callable[[int], None]

    def read(
        self,
        model: Model,
        version: int | None,
        body: bytes,
        header_length: str | None,
        timeout_s: float | None,
    ) -> InferRequest:
        """Splits and checks a body.

        Raises:
            InvalidRequest: broken JSON, or data that does not fit the model; each named.
            TooLarge: more JSON than allowed.
            SegserveError: what is asked for is not supported, or its shared memory is not there.
        """
        end = _json_length(body, header_length)
        start = len(BOM) if body.startswith(BOM) else 0
        json = cut_data(memoryview(body)[start:end], self.max_json_bytes)
        header = decode(json.text, _Header, WHAT)
        if ignored := count_ignored(json.text, _Header):
            self.ignored(ignored)
        parameters = read_parameters(WHAT, header.parameters)
        if EMPTY_FINAL_RESPONSE in parameters:
            raise InvalidRequest(f"parameter {EMPTY_FINAL_RESPONSE!r} is for gRPC streams")
        asked = read_request_parameters(parameters)
        outputs = tuple(
            _read_output(output, asked.binary_output) for output in header.outputs or ()
        )
        check_input_names([item.name for item in header.inputs], model)
        inputs, offset = [], end
        for item in header.inputs:
            tensor, offset = self._read_input(item, model, body, offset, json)
            inputs.append(tensor)
        if offset != len(body):
            raise InvalidRequest(
                f"{len(body) - offset} bytes after the last input's binary data "
                f"for model {model.name!r}"
            )
        return InferRequest(
            model=model.name,
            version=version,
            id=header.id or "",
            inputs=tuple(inputs),
            outputs=outputs,
            timeout_s=timeout_s,
            policy_timeout_s=asked.timeout_s,
            priority=asked.priority,
            binary=asked.binary_output,
        )

    def _read_input(
        self, item: _Input, model: Model, body: bytes, offset: int, json: CutJson
    ) -> tuple[Tensor, int]:
        """Returns one tensor, and where the next one's binary data begins."""
        shape = tuple(item.shape)
        given = read_parameters(f"input {item.name!r}", item.parameters)
        place = read_place(item.name, given)
        size = read_count(given, "binary_data_size")
        data = _find_data(item, json)
        if (data is not None) + (size is not None) + (place is not None) != 1:
            raise InvalidRequest(
                f"input {item.name!r} needs one of data, binary_data_size, shared_memory_region"
            )
        check_input(item.name, item.datatype, shape, model)
        if place is not None:
            return self.memory.read_tensor(item.name, item.datatype, shape, place), offset
        if size is not None:
            if offset + size > len(body):
                raise InvalidRequest(
                    f"input {item.name!r}: binary_data_size {size} exceeds the body by "
                    f"{offset + size - len(body)} bytes"
                )
            raw = memoryview(body)[offset : offset + size]
            return read_tensor(item.name, item.datatype, shape, raw), offset + size
        assert data is not None
        elements = int(np.prod(shape, dtype=np.int64))
        if item.datatype == "BYTES":
            # JSON holds no raw bytes: base64, as in the protocol's gRPC-gateway mapping.
            files = read_files(item.name, data, elements)
            return bytes_tensor(item.name, shape, files), offset
        values = read_numbers(item.name, data, elements)
        return Tensor(item.name, item.datatype, shape, values.reshape(shape)), offset


def read_raw_request(
    model: Model, version: int | None, body: bytes, timeout_s: float | None
) -> InferRequest:
    """Reads a body that is one image's pixels and nothing else; every output comes as binary.

    Raises:
        InvalidRequest: another size than the model's.
    """
    size = model.spec.size
    pixels = read_tensor(INPUT, "UINT8", (1, size.height, size.width, 3), body)
    return InferRequest(model.name, version, "", (pixels,), timeout_s=timeout_s, binary=True)


def _json_length(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    length = read_length(header_length.strip(), HEADER_LENGTH)
    if length > len(body):
        raise InvalidRequest(f"{HEADER_LENGTH}: {length} does not fit a body of {len(body)} bytes")
    return length


def _find_data(item: _Input, json: CutJson) -> npt.NDArray[np.uint8] | None:
    """Returns the JSON text of an input's data; None where there is none."""
    text = bytes(item.data)
    if text == b"null":
        return None
    # A marker is a text of its own; what a client writes is never one.
    found = json.arrays.get(text[1:-1].decode("latin-1")) if len(text) < 128 else None
    return np.frombuffer(text, np.uint8) if found is None else found


def _read_output(output: _Output, binary_default: bool) -> RequestedOutput:
    given = read_parameters(f"output {output.name!r}", output.parameters)
    refuse_classification(output.name, given)
    return RequestedOutput(
        output.name, _wants_binary(given, binary_default), read_place(output.name, given)
    )


def _wants_binary(given: Parameters, default: bool) -> bool:
    binary = read_flag(given, "binary_data")
    return default if binary is None else binary


def build_infer_response(response: InferResponse) -> tuple[bytes, int | None]:
    """Returns the body, and the length of its JSON part where binary data follows."""
    binary: list[Buffer] = []
    outputs = [_show_output(output, binary) for output in response.outputs]
    head: dict[str, object] = {
        "model_name": response.model,
        "model_version": str(response.version),
        "outputs": outputs,
    }
    if response.id:
        head["id"] = response.id
    text = msgspec.json.encode(head)
    return b"".join([text, *binary]) if binary else text, len(text) if binary else None


def _show_output(output: OutputTensor, binary: list[Buffer]) -> dict[str, object]:
    """Returns the JSON of one output; what goes behind the JSON is appended to ``binary``."""
    tensor = output.tensor
    shown: dict[str, object] = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
    }
    if output.requested.place is not None:
        return shown
    if output.requested.binary:
        binary.append(tensor.to_buffer())
        shown["parameters"] = {"binary_data_size": len(binary[-1])}
    elif isinstance(tensor.data, tuple):
        shown["data"] = [_encode_base64(item) for item in tensor.data]
    else:
        shown["data"] = Raw(b"[" + _encode_numbers(tensor.data.reshape(-1)) + b"]")
    return shown


def _encode_numbers(values: LabelMap | npt.NDArray[np.float32]) -> bytes:
    return b",".join(
        msgspec.json.encode(values[start : start + NUMBERS_AT_ONCE].tolist())[1:-1]
        for start in range(0, len(values), NUMBERS_AT_ONCE)
    )


def _encode_base64(item: bytes) -> str:
    return b"".join(
        base64.b64encode(item[start : start + BASE64_AT_ONCE])
        for start in range(0, len(item), BASE64_AT_ONCE)
    ).decode("ascii")
