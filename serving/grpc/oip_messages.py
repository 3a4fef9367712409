"""``infer`` between the messages of the Open Inference Protocol and the dataplane.

Source: grpc_service.proto of the Open Inference Protocol; Triton's extensions of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from google.protobuf.unknown_fields import UnknownFieldSet
from tritonclient.grpc import service_pb2 as oip

from serving.errors import InvalidRequest
from serving.grpc.wire import LENGTH, UNPARSED_NUMBER
from serving.models.model import Model
from serving.oip.image_tensors import check_input, check_input_names
from serving.oip.messages import InferRequest, InferResponse, RequestedOutput
from serving.oip.parameters import (
    ParameterValue,
    read_place,
    read_request_parameters,
    refuse_classification,
)
from serving.oip.shared_memory import SharedMemory
from serving.oip.tensors import Tensor, bytes_tensor, read_tensor
from serving.parsing import parse_version

InputTensor: TypeAlias = oip.ModelInferRequest.InferInputTensor
InferTensorContents: TypeAlias = oip.InferTensorContents


def read_infer_request(
    request: oip.ModelInferRequest,
    time_left_s: float | None,
    model: Model,
    memory: SharedMemory,
) -> InferRequest:
    """Checks a message, first against the model, then its data.

    Raises:
        InvalidRequest: data that does not fit, or a parameter of another type.
        SegserveError: what is asked for is not supported, or its shared memory is not there.
    """
    asked = read_request_parameters(read_parameters(request.parameters))
    outputs = []
    for output in request.outputs:
        parameters = read_parameters(output.parameters)
        refuse_classification(output.name, parameters)
        outputs.append(RequestedOutput(output.name, place=read_place(output.name, parameters)))
    check_input_names([item.name for item in request.inputs], model)
    return InferRequest(
        model=request.model_name,
        version=parse_version(request.model_version),
        id=request.id,
        inputs=(_read_input(request, model, memory),),
        outputs=tuple(outputs),
        timeout_s=time_left_s,
        policy_timeout_s=asked.timeout_s,
        priority=asked.priority,
    )


def read_parameters(given: Mapping[str, oip.InferParameter]) -> dict[str, ParameterValue]:
    """Returns the values of a parameter map; None where one is unset."""
    values: dict[str, ParameterValue] = {}
    for name, parameter in given.items():
        chosen = parameter.WhichOneof("parameter_choice")
        values[name] = None if chosen is None else getattr(parameter, chosen)
    return values


def _read_input(request: oip.ModelInferRequest, model: Model, memory: SharedMemory) -> Tensor:
    """Reads the one input from shared memory, ``raw_input_contents``, or ``contents``.

    Raises:
        InvalidRequest: several of them, or data that does not fit.
    """
    item, raw = request.inputs[0], request.raw_input_contents
    place = read_place(item.name, read_parameters(item.parameters))
    inline = int(place is None)
    if raw and len(raw) != inline:
        raise InvalidRequest(
            f"{inline} inputs are not in shared memory, raw_input_contents holds "
            f"{len(raw)}, for model {request.model_name!r}"
        )
    if item.HasField("contents") and (raw or place is not None):
        raise InvalidRequest(
            f"input {item.name!r} has contents beside raw_input_contents or shared memory"
        )
    shape = tuple(item.shape)
    check_input(item.name, item.datatype, shape, model)
    if place is not None:
        return memory.read_tensor(item.name, item.datatype, shape, place)
    if raw:
        return read_tensor(item.name, item.datatype, shape, raw[0])
    return _read_contents(item, shape)


def _read_contents(item: InputTensor, shape: tuple[int, ...]) -> Tensor:
    expected = "bytes_contents" if item.datatype == "BYTES" else "uint_contents"
    unparsed = _list_unparsed(item.contents)
    present = {field.name for field, _ in item.contents.ListFields()}
    if unparsed:
        present.add("uint_contents")
    if present - {expected}:
        raise InvalidRequest(
            f"input {item.name!r}: {item.datatype} goes into {expected}, "
            f"not {', '.join(sorted(present - {expected}))}"
        )
    if expected == "bytes_contents":
        return bytes_tensor(item.name, shape, item.contents.bytes_contents)
    numbers = item.contents.uint_contents
    if unparsed and numbers:
        raise InvalidRequest(
            f"input {item.name!r}: uint_contents are packed in part; send them all packed"
        )
    if numbers:
        # Not packed: each was a field, so there are few.
        if max(numbers) > 255:
            raise _beyond_range(item)
        return read_tensor(item.name, item.datatype, shape, bytes(numbers))
    values = b"".join(_read_numbers(item, wire) for wire in unparsed)
    return read_tensor(item.name, item.datatype, shape, values)


def _list_unparsed(contents: InferTensorContents) -> list[bytes]:
    """Returns the packed ``uint_contents`` as they came: see ``wire.py``."""
    return [
        field.data
        for field in UnknownFieldSet(contents)
        if (field.field_number, field.wire_type) == (UNPARSED_NUMBER, LENGTH)
    ]


def _read_numbers(item: InputTensor, packed: bytes) -> bytes:
    """Returns packed numbers as bytes; by NumPy, as there may be millions of them.

    On the wire a number below 128 is one byte, one up to 255 is two: its low seven bits with the
    highest bit set, then a 1.
    """
    wire = np.frombuffer(packed, np.uint8)
    is_first = wire >= 0x80
    if not is_first.any():
        return packed
    is_second = np.zeros_like(is_first)
    is_second[1:] = is_first[:-1]
    if (is_first & is_second).any() or (wire[is_second] != 1).any():
        raise _beyond_range(item)
    values = wire[~is_first]
    values[is_second[~is_first]] = wire[is_first]
    return values.tobytes()


def _beyond_range(item: InputTensor) -> InvalidRequest:
    return InvalidRequest(f"input {item.name!r}: a value is above 255, the largest UINT8")


def build_infer_message(response: InferResponse) -> oip.ModelInferResponse:
    """Returns the answer; an output in shared memory has empty contents."""
    tensor = oip.ModelInferResponse.InferOutputTensor
    return oip.ModelInferResponse(
        model_name=response.model,
        model_version=str(response.version),
        id=response.id,
        outputs=[
            tensor(name=o.tensor.name, datatype=o.tensor.datatype, shape=o.tensor.shape)
            for o in response.outputs
        ],
        raw_output_contents=[
            o.tensor.to_bytes() if o.requested.place is None else b"" for o in response.outputs
        ],
    )
