"""Answers of the Open Inference Protocol as flat fields, and how two servers' differ."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import httpx
import numpy as np
import numpy.typing as npt
from google.protobuf import json_format
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2_grpc as oip_grpc

from tests.support.protocol_grpc_cases import GrpcCase
from tests.support.protocol_http_cases import LENGTH, HttpCase

Fields: TypeAlias = dict[str, object]
ABSENT = "absent"
DTYPES = {"UINT8": np.uint8, "FP32": np.float32}
# Agreement of labels; logits are compared by their largest.
AGREEMENT, RELATIVE = 0.9999, 1e-6


@dataclass(frozen=True)
class Difference:
    """Patterns: of the request's name, of the field, and of each server's value."""

    request: str
    field: str
    triton: str
    ours: str

    def holds(self, found: Difference) -> bool:
        return all(
            fnmatchcase(getattr(found, name), getattr(self, name))
            for name in ("request", "field", "triton", "ours")
        )


def read_differences(page: Path) -> list[Difference]:
    """The table with the columns request, field, Triton, segserve."""
    lines = iter(page.read_text("utf-8").splitlines())
    for line in lines:
        if re.match(r"\| request +\| field +\| Triton +\| segserve +\|", line):
            break
    next(lines)
    rows: list[Difference] = []
    for line in lines:
        if not line.startswith("|"):
            return rows
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        rows.append(Difference(*cells[:4]))
    return rows


def settled(ask: Callable[[], Fields]) -> Fields:
    """The answer, once no model is being unloaded any more: Triton does that behind its answer."""
    deadline = time.monotonic() + 30
    while True:
        fields = ask()
        changing = any(isinstance(v, str) and v == "UNLOADING" for v in fields.values())
        if not changing or time.monotonic() > deadline:
            return fields
        time.sleep(0.1)


def ask_http(client: httpx.Client, case: HttpCase) -> Fields:
    """Status, content type, encoding, and the fields of the body."""
    answer = client.request(case.method, case.path, content=case.body, headers=case.headers)
    fields: Fields = {
        "status": answer.status_code,
        "content-type": answer.headers.get("content-type", ABSENT) if answer.content else ABSENT,
        "content-encoding": answer.headers.get("content-encoding", ABSENT),
        "binary part": LENGTH in answer.headers,
    }
    end = int(answer.headers.get(LENGTH, len(answer.content)))
    body = json.loads(answer.content[:end]) if end else {}
    if isinstance(body, dict) and "model_name" in body:
        fields |= _http_tensors(body.pop("outputs"), answer.content[end:])
    return fields | _flatten(body)


def _http_tensors(outputs: list[dict[str, Any]], binary: bytes) -> Fields:
    # Their order is Triton's own, and varies from start to start.
    fields: Fields = {"outputs": sorted(output["name"] for output in outputs)}
    for output in outputs:
        name, dtype = output["name"], DTYPES.get(output["datatype"])
        data = output.pop("data", None)
        size = output.get("parameters", {}).get("binary_data_size", 0)
        raw, binary = binary[:size], binary[size:]
        if dtype is not None:
            array = np.frombuffer(raw, dtype) if data is None else np.asarray(data, dtype)
            fields[f"{name} data"] = array.reshape(output["shape"])
        fields |= {f"{name} {key}": value for key, value in _flatten(output).items()}
    fields["bytes left over"] = len(binary)
    return fields


def ask_grpc(stub: oip_grpc.GRPCInferenceServiceStub, case: GrpcCase) -> Fields:
    """The code, metadata, and the fields of the message."""
    try:
        message = getattr(stub, case.call)(case.message, timeout=60)
    except grpc.RpcError as error:
        metadata = {f"metadata {key}": value for key, value in error.trailing_metadata()}
        return {"code": error.code().name, "error": error.details(), **metadata}
    return {"code": "OK", **message_fields(message)}


def message_fields(message: Message) -> Fields:
    """Every field of a message, tensors as arrays."""
    fields: Fields = {}
    for output, raw in zip(
        getattr(message, "outputs", ()), getattr(message, "raw_output_contents", ()), strict=False
    ):
        if output.datatype in DTYPES:
            array = np.frombuffer(raw, DTYPES[output.datatype]).reshape(output.shape)
            fields[f"{output.name} data"] = array
    if fields:
        message.ClearField("raw_output_contents")
    shown = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return fields | _flatten(shown)


def _flatten(value: object, path: str = "") -> Fields:
    """Leaves of nested objects by their path; entries of lists that have a name, by it."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        items = [(str(item.get("name", i)), item) for i, item in enumerate(value)]
    else:
        return {path: value} if path else {}
    flat: Fields = {}
    for key, item in items:
        flat |= _flatten(item, f"{path}.{key}" if path else key)
    return flat


def differences(
    request: str, triton: Fields, ours: Fields, names: tuple[str, ...]
) -> list[Difference]:
    """What differs; errors by their status and by the names in them, not by their wording."""
    found = []
    fields = {*triton, *ours}
    if ("error" in triton) != ("error" in ours):
        # An answer and an error: what they hold differs with it.
        fields &= {"status", "code"}
    for field in sorted(fields):
        theirs, own = triton.get(field, ABSENT), ours.get(field, ABSENT)
        if not _same(field, theirs, own):
            found.append(Difference(request, field, _show(theirs), _show(own)))
    if "error" in triton and "error" in ours:
        for name in names:
            assert name in str(triton["error"]), (request, triton["error"])
            if name not in str(ours["error"]):
                found.append(Difference(request, "error", name, str(ours["error"])))
    return found


def _same(field: str, theirs: object, own: object) -> bool:
    if field.rpartition(".")[2] in ("error", "error_message", "reason") and ABSENT not in (
        theirs,
        own,
    ):
        return bool(theirs) == bool(own)
    if isinstance(theirs, np.ndarray) and isinstance(own, np.ndarray):
        return theirs.shape == own.shape and _close(theirs, own)
    return type(theirs) is type(own) and theirs == own


def _close(theirs: npt.NDArray[np.generic], own: npt.NDArray[np.generic]) -> bool:
    if theirs.dtype == np.uint8:
        return bool((theirs == own).mean() >= AGREEMENT)
    expected, found = theirs.astype(np.float64), own.astype(np.float64)
    largest = np.abs(expected).max(initial=0)
    return bool(np.abs(expected - found).max(initial=0) <= RELATIVE * largest)


def _show(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return value if isinstance(value, str) else json.dumps(value)
