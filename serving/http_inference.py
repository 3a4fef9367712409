"""Open Inference Protocol over HTTP: JSON, and JSON followed by binary tensors.

Source: Open Inference Protocol v2; Triton's extension_binary_data.md.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.dataplane import InferRequest, InferResponse
from serving.errors import InvalidRequest
from serving.protocol import TIMEOUT_PARAMETER
from serving.tensors import Tensor, read_tensor

HEADER_LENGTH = "Inference-Header-Content-Length"
JsonValue = str | int | float | bool | None


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    shape: list[int] = Field(max_length=8)
    datatype: str
    parameters: dict[str, JsonValue] = {}
    data: list[object] | None = None


class _Output(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    parameters: dict[str, JsonValue] = {}


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str = ""
    parameters: dict[str, JsonValue] = {}
    inputs: list[_Input]
    outputs: list[_Output] = []


@dataclass(frozen=True)
class HttpInferRequest:
    """A parsed request, and which outputs go back as binary."""

    request: InferRequest
    binary: dict[str, bool]
    binary_default: bool


def parse_infer_request(
    model: str,
    version: int | None,
    body: bytes,
    header_length: str | None,
    timeout_s: float | None,
) -> HttpInferRequest:
    """Splits and checks a body.

    Raises:
        InvalidRequest: broken JSON, unknown fields, or data that does not fit; each named.
    """
    end = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length) > len(body):
            raise InvalidRequest(
                f"{HEADER_LENGTH}: {header_length!r} does not fit a body of {len(body)} bytes"
            )
        end = int(header_length)
    try:
        header = _Header.model_validate_json(body[:end])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"inference request: {where}: {first['msg']}") from None
    inputs, offset = [], end
    for item in header.inputs:
        size = item.parameters.get("binary_data_size")
        if size is None:
            inputs.append(_read_json(item))
            continue
        if not isinstance(size, int) or size < 0 or offset + size > len(body):
            raise InvalidRequest(f"input {item.name!r}: binary_data_size {size} exceeds the body")
        raw = memoryview(body)[offset : offset + size]
        inputs.append(read_tensor(item.name, item.datatype, tuple(item.shape), raw))
        offset += size
    if offset != len(body):
        raise InvalidRequest(f"{len(body) - offset} bytes after the last input's binary data")
    asked = header.parameters.get(TIMEOUT_PARAMETER)
    if isinstance(asked, int) and asked > 0:
        timeout_s = asked / 1e6 if timeout_s is None else min(asked / 1e6, timeout_s)
    return HttpInferRequest(
        InferRequest(
            model=model,
            version=version,
            id=header.id,
            inputs=tuple(inputs),
            outputs=tuple(output.name for output in header.outputs),
            timeout_s=timeout_s,
        ),
        {o.name: bool(o.parameters["binary_data"]) for o in header.outputs
         if "binary_data" in o.parameters},
        bool(header.parameters.get("binary_data_output", False)),
    )  # fmt: skip


def _read_json(item: _Input) -> Tensor:
    if item.data is None:
        raise InvalidRequest(f"input {item.name!r} has neither data nor binary_data_size")
    shape = tuple(item.shape)
    if item.datatype == "BYTES":
        # JSON holds no raw bytes: base64, as in the protocol's gRPC-gateway mapping.
        try:
            files = tuple(base64.b64decode(str(text), validate=True) for text in item.data)
        except (binascii.Error, ValueError):
            raise InvalidRequest(
                f"input {item.name!r}: BYTES in JSON must be base64; better send binary data"
            ) from None
        packed = Tensor(item.name, "BYTES", shape, files)
        return read_tensor(item.name, "BYTES", shape, packed.to_bytes())
    try:
        values = np.asarray(item.data, np.int64).reshape(-1)
    except (ValueError, TypeError, OverflowError):
        raise InvalidRequest(f"input {item.name!r}: data is no array of integers") from None
    if values.size and (values.min() < 0 or values.max() > 255):
        raise InvalidRequest(f"input {item.name!r}: UINT8 values lie in 0..255")
    return read_tensor(item.name, item.datatype, shape, values.astype(np.uint8).tobytes())


def build_infer_response(
    parsed: HttpInferRequest, response: InferResponse
) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part where binary data follows."""
    outputs: list[dict[str, object]] = []
    binary: list[bytes] = []
    for tensor in response.outputs:
        entry: dict[str, object] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if parsed.binary.get(tensor.name, parsed.binary_default):
            binary.append(tensor.to_bytes())
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        elif isinstance(tensor.data, tuple):
            entry["data"] = [base64.b64encode(item).decode() for item in tensor.data]
        else:
            entry["data"] = tensor.data.reshape(-1).tolist()
        outputs.append(entry)
    head: dict[str, object] = {
        "model_name": response.model,
        "model_version": str(response.version),
        "outputs": outputs,
    }
    if response.id:
        head["id"] = response.id
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join([text, *binary]), len(text) if binary else None
