"""Open Inference Protocol over HTTP: JSON, and JSON followed by binary tensors.

Source: Open Inference Protocol v2; Triton's extension_binary_data.md.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, TypeAlias

import numpy as np
from pydantic import Field, ValidationError

from serving.errors import InvalidRequest
from serving.http.json_body import StrictBody, describe
from serving.models.model import Model
from serving.oip.image_tensors import INPUT
from serving.oip.inference import InferRequest, InferResponse, OutputTensor, RequestedOutput
from serving.oip.parameters import (
    EMPTY_FINAL_RESPONSE,
    ParameterValue,
    read_count,
    read_flag,
    read_place,
    read_request_parameters,
    refuse_classification,
)
from serving.oip.shared_memory import SharedMemory
from serving.oip.tensors import Buffer, Tensor, read_tensor

HEADER_LENGTH = "Inference-Header-Content-Length"
# What is inside JSON lists: numbers, texts, or lists of them.
Json: TypeAlias = object
Dimension = Annotated[int, Field(ge=0, lt=2**31)]


class _Input(StrictBody):
    name: str
    shape: list[Dimension] = Field(max_length=8)
    datatype: str
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)
    data: list[Json] | None = None


class _Output(StrictBody):
    name: str
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)


class _Header(StrictBody):
    id: str = ""
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)
    inputs: list[_Input]
    outputs: list[_Output] = Field(default_factory=list)


def parse_infer_request(
    model: str,
    version: int | None,
    body: bytes,
    header_length: str | None,
    timeout_s: float | None,
    memory: SharedMemory,
) -> InferRequest:
    """Splits and checks a body.

    Raises:
        InvalidRequest: broken JSON, unknown fields, or data that does not fit; each named.
        SegserveError: what is asked for is not supported, or its shared memory is not there.
    """
    end = _json_length(body, header_length)
    try:
        header = _Header.model_validate_json(body[:end])
    except ValidationError as error:
        raise InvalidRequest(f"inference request: {describe(error)}") from None
    if EMPTY_FINAL_RESPONSE in header.parameters:
        raise InvalidRequest(f"parameter {EMPTY_FINAL_RESPONSE!r} is for gRPC streams")
    asked = read_request_parameters(header.parameters)
    inputs, offset = [], end
    for item in header.inputs:
        place = read_place(item.name, item.parameters)
        size = read_count(item.parameters, "binary_data_size")
        if (item.data is not None) + (size is not None) + (place is not None) != 1:
            raise InvalidRequest(
                f"input {item.name!r} needs one of data, binary_data_size, shared_memory_region"
            )
        shape = tuple(item.shape)
        if place is not None:
            inputs.append(read_tensor(item.name, item.datatype, shape, memory.read(place)))
        elif size is not None:
            if offset + size > len(body):
                raise InvalidRequest(
                    f"input {item.name!r}: binary_data_size {size} exceeds the body by "
                    f"{offset + size - len(body)} bytes"
                )
            raw = memoryview(body)[offset : offset + size]
            inputs.append(read_tensor(item.name, item.datatype, shape, raw))
            offset += size
        else:
            inputs.append(_read_json(item, shape))
    if offset != len(body):
        raise InvalidRequest(
            f"{len(body) - offset} bytes after the last input's binary data for model {model!r}"
        )
    return InferRequest(
        model=model,
        version=version,
        id=header.id,
        inputs=tuple(inputs),
        outputs=tuple(_read_output(output, asked.binary_output) for output in header.outputs),
        timeout_s=timeout_s,
        policy_timeout_s=asked.timeout_s,
        priority=asked.priority,
        binary=asked.binary_output,
    )


def parse_raw_request(
    model: Model, version: int | None, body: bytes, timeout_s: float | None
) -> InferRequest:
    """A body that is one image's pixels and nothing else; every output comes back as binary.

    Raises:
        InvalidRequest: another size than the model's.
    """
    size = model.spec.size
    pixels = read_tensor(INPUT, "UINT8", (1, size.height, size.width, 3), body)
    return InferRequest(model.name, version, "", (pixels,), timeout_s=timeout_s, binary=True)


def _json_length(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    # 20 digits: int() itself refuses what is much longer.
    if not header_length.isdecimal() or len(header_length) > 20 or int(header_length) > len(body):
        raise InvalidRequest(
            f"{HEADER_LENGTH}: {header_length!r} does not fit a body of {len(body)} bytes"
        )
    return int(header_length)


def _read_output(output: _Output, binary_default: bool) -> RequestedOutput:
    refuse_classification(output.name, output.parameters)
    binary = read_flag(output.parameters, "binary_data")
    return RequestedOutput(
        output.name,
        binary_default if binary is None else binary,
        read_place(output.name, output.parameters),
    )


def _read_json(item: _Input, shape: tuple[int, ...]) -> Tensor:
    data = item.data or []
    if item.datatype == "BYTES":
        # JSON holds no raw bytes: base64, as in the protocol's gRPC-gateway mapping.
        try:
            files = tuple(base64.b64decode(str(text), validate=True) for text in data)
        except (binascii.Error, ValueError):
            raise InvalidRequest(
                f"input {item.name!r}: BYTES in JSON must be base64; better send binary data"
            ) from None
        packed = Tensor(item.name, "BYTES", shape, files)
        return read_tensor(item.name, "BYTES", shape, packed.to_bytes())
    try:
        values = np.asarray(data).reshape(-1)
    except (ValueError, TypeError, OverflowError):
        raise InvalidRequest(f"input {item.name!r}: data is no array of integers") from None
    if values.size and values.dtype.kind not in "iu":
        raise InvalidRequest(f"input {item.name!r}: data is no array of integers")
    if values.size and (values.min() < 0 or values.max() > 255):
        raise InvalidRequest(f"input {item.name!r}: UINT8 values lie in 0..255")
    return read_tensor(item.name, item.datatype, shape, values.astype(np.uint8).tobytes())


def build_infer_response(response: InferResponse) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part where binary data follows."""
    binary: list[Buffer] = []
    outputs = [_show_output(output, binary) for output in response.outputs]
    head: dict[str, object] = {
        "model_name": response.model,
        "model_version": str(response.version),
        "outputs": outputs,
    }
    if response.id:
        head["id"] = response.id
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join([text, *binary]), len(text) if binary else None


def _show_output(output: OutputTensor, binary: list[Buffer]) -> dict[str, object]:
    """The JSON of one output; what goes behind the JSON is appended to ``binary``."""
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
        shown["data"] = [base64.b64encode(item).decode() for item in tensor.data]
    else:
        shown["data"] = tensor.data.reshape(-1).tolist()
    return shown
