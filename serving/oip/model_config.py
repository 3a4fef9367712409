"""``ModelConfig`` as clients see it: completed as Triton completes it, and in Triton's JSON form.

Source: triton-inference-server/common protobuf/model_config.proto;
Triton's extension_model_configuration.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from serving.models.repository import ModelConfig, ModelFolder

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
