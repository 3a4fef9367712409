"""``infer`` between the messages of the Open Inference Protocol and the dataplane.

Source: grpc_service.proto of the Open Inference Protocol; Triton's extensions of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from tritonclient.grpc import service_pb2 as oip

from serving.errors import InvalidRequest
from serving.oip.inference import InferRequest, InferResponse, RequestedOutput
from serving.oip.parameters import (
    ParameterValue,
    read_place,
    read_request_parameters,
    refuse_classification,
)
from serving.oip.protocol import parse_version
from serving.oip.shared_memory import SharedMemory
from serving.oip.tensors import Tensor, read_tensor

InputTensor: TypeAlias = oip.ModelInferRequest.InferInputTensor


def read_infer_request(
    request: oip.ModelInferRequest, time_left_s: float | None, memory: SharedMemory
) -> InferRequest:
    """Checks a message.

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
    return InferRequest(
        model=request.model_name,
        version=parse_version(request.model_version),
        id=request.id,
        inputs=read_inputs(request, memory),
        outputs=tuple(outputs),
        timeout_s=time_left_s,
        policy_timeout_s=asked.timeout_s,
        priority=asked.priority,
    )


def read_parameters(given: Mapping[str, oip.InferParameter]) -> dict[str, ParameterValue]:
    """The values of a parameter map; None where one is unset."""
    values: dict[str, ParameterValue] = {}
    for name, parameter in given.items():
        chosen = parameter.WhichOneof("parameter_choice")
        values[name] = None if chosen is None else getattr(parameter, chosen)
    return values


def read_inputs(request: oip.ModelInferRequest, memory: SharedMemory) -> tuple[Tensor, ...]:
    """Tensors from shared memory, ``raw_input_contents``, or ``contents`` where there are none.

    Raises:
        InvalidRequest: both, too few or too many, or data that does not fit.
    """
    raw = list(request.raw_input_contents)
    places = [read_place(item.name, read_parameters(item.parameters)) for item in request.inputs]
    if raw and len(raw) != places.count(None):
        raise InvalidRequest(
            f"{places.count(None)} inputs are not in shared memory, raw_input_contents holds "
            f"{len(raw)}, for model {request.model_name!r}"
        )
    tensors, contents = [], iter(raw)
    for item, place in zip(request.inputs, places, strict=True):
        shape = tuple(item.shape)
        if item.HasField("contents") and (raw or place is not None):
            raise InvalidRequest(
                f"input {item.name!r} has contents beside raw_input_contents or shared memory"
            )
        if place is not None:
            tensors.append(read_tensor(item.name, item.datatype, shape, memory.read(place)))
        elif raw:
            tensors.append(read_tensor(item.name, item.datatype, shape, next(contents)))
        else:
            tensors.append(_read_contents(item, shape))
    return tuple(tensors)


def _read_contents(item: InputTensor, shape: tuple[int, ...]) -> Tensor:
    expected = "bytes_contents" if item.datatype == "BYTES" else "uint_contents"
    present = {field.name for field, _ in item.contents.ListFields()}
    if present - {expected}:
        raise InvalidRequest(
            f"input {item.name!r}: {item.datatype} goes into {expected}, "
            f"not {', '.join(sorted(present - {expected}))}"
        )
    if expected == "bytes_contents":
        packed = Tensor(item.name, "BYTES", shape, tuple(item.contents.bytes_contents))
        return read_tensor(item.name, "BYTES", shape, packed.to_bytes())
    values = item.contents.uint_contents
    if any(value > 255 for value in values):
        raise InvalidRequest(f"input {item.name!r}: a value is above 255, the largest UINT8")
    return read_tensor(item.name, item.datatype, shape, bytes(values))


def build_infer_message(response: InferResponse) -> oip.ModelInferResponse:
    """The answer; an output in shared memory has empty contents."""
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
