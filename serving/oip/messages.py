"""The Open Inference Protocol's ``infer``, as a request and an answer without a transport.

Facts of the protocol that both transports need stand here too: names, versions, the texts for the
extensions that Triton has and this server refuses, and ``ModelConfig`` as clients see it:
completed as Triton completes it, and in Triton's JSON.

Source: triton-inference-server/common protobuf/model_config.proto;
Triton's extension_model_configuration.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from serving.models.repository import ModelConfig, ModelFolder
from serving.oip.shared_memory import RegionSlice
from serving.oip.tensors import Tensor
from serving.settings import Settings


@dataclass(frozen=True)
class RequestedOutput:
    """An output and where it goes.

    Attributes:
        binary: behind the JSON part, not in it; HTTP only.
        place: in shared memory, not in the answer.
    """

    name: str
    binary: bool = False
    place: RegionSlice | None = None


@dataclass(frozen=True)
class InferRequest:
    """One inference; no ``outputs`` means all of the model's own.

    Attributes:
        timeout_s: the transport's deadline (gRPC's, or the header's), from now.
        policy_timeout_s: the parameter ``timeout``, which the model's queue policy acts upon.
        priority: 1 goes first, 0 is the model's default.
        binary: as in RequestedOutput, where ``outputs`` is empty.
    """

    model: str
    version: int | None
    id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    timeout_s: float | None = None
    policy_timeout_s: float | None = None
    priority: int = 0
    binary: bool = False


@dataclass(frozen=True)
class OutputTensor:
    """An output; its data is in shared memory already where ``requested.place`` names some."""

    requested: RequestedOutput
    tensor: Tensor


@dataclass(frozen=True)
class InferResponse:
    """The answer, outputs in the order of the model's configuration."""

    model: str
    version: int
    id: str
    outputs: tuple[OutputTensor, ...]


SERVER_NAME = "segserve"
SERVER_VERSION = version("segserve")
# Of extensions that Triton has and this server refuses.
CUDA_REFUSED = "CUDA shared memory is not supported; use system shared memory"
TRACE_REFUSED = "trace settings are not supported"
LOG_REFUSED = "log settings are not supported; the log level is the process's own"


def list_extensions(settings: Settings) -> tuple[str, ...]:
    """Returns Triton's extensions that this server has, by Triton's names."""
    shared_memory = ("system_shared_memory",) if settings.enable_shared_memory else ()
    return (
        "model_repository",
        "schedule_policy",
        "model_configuration",
        *shared_memory,
        "binary_tensor_data",
        "parameters",
        "statistics",
    )


Json: TypeAlias = str | int | float | bool | list["Json"] | dict[str, "Json"]


def complete_config(folder: ModelFolder) -> ModelConfig:
    """Returns a copy with the defaults that the file leaves out."""
    config = ModelConfig()
    config.CopyFrom(folder.config)
    config.backend = "onnxruntime"
    config.platform = config.platform or "onnxruntime_onnx"
    config.default_model_filename = config.default_model_filename or "model.onnx"
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    config.optimization.input_pinned_memory.enable = True
    config.optimization.output_pinned_memory.enable = True
    queue = config.dynamic_batching
    if config.HasField("dynamic_batching") and not queue.preferred_batch_size:
        queue.preferred_batch_size.append(folder.max_batch_size)
    for index, group in enumerate(config.instance_group):
        group.name = group.name or f"{config.name}_{index}"
        group.count = max(1, group.count)
    if not config.instance_group:
        group = config.instance_group.add(name=config.name, count=folder.instances)
        group.kind = group.KIND_CPU
    return config


def config_json(message: Message) -> dict[str, Json]:
    """Returns a message with its defaults, numbers as numbers (protobuf's own JSON has int64 as
    text)."""
    shown: dict[str, Json] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            shown[field.name] = {str(key): _value(inner, value[key]) for key in value}
        elif isinstance(value, Sequence) and not isinstance(value, str):
            shown[field.name] = [_value(field, item) for item in value]
        elif not field.has_presence or message.HasField(field.name):
            shown[field.name] = _value(field, value)
    return shown


def _value(field: FieldDescriptor, value: Message | str | int | float | bool) -> Json:
    if isinstance(value, Message):
        return config_json(value)
    if field.enum_type is not None:
        name: str = field.enum_type.values_by_number[value].name
        return name
    return value
