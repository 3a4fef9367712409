"""Reads a Triton model repository: ``<name>/{config.pbtxt,labels.txt,<version>/model.onnx}``.

``config.pbtxt`` is Triton's ``ModelConfig``; fields mean what they mean there. What this server
does not do is refused by name, never ignored. Segmentation facts are in ``parameters``.

Source: triton-inference-server/common protobuf/model_config.proto;
server docs/user_guide/model_configuration.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serving.errors import InvalidModel
from serving.palette import LabelSet, default_palette, parse_palette

ModelConfig: TypeAlias = model_config_pb2.ModelConfig

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
MAX_CLASSES = 255

TENSOR_TYPES = {
    "image": model_config_pb2.TYPE_UINT8,
    "mask": model_config_pb2.TYPE_UINT8,
    "confidence": model_config_pb2.TYPE_UINT8,
    "logits": model_config_pb2.TYPE_FP32,
}

# Fields of ModelConfig that change behaviour and that this server does not implement.
UNSUPPORTED_FIELDS = (
    "ensemble_scheduling",
    "sequence_batching",
    "model_transaction_policy",
    "response_cache",
    "model_operations",
    "batch_input",
    "batch_output",
)


@dataclass(frozen=True)
class ModelFolder:
    """One model of the repository, checked, not loaded.

    Attributes:
        versions: the versions to serve, ascending; the last one answers unversioned requests.
        delay_ms: ``dynamic_batching.max_queue_delay_microseconds`` / 1000.
        instances: instances of all groups together.
        config: the whole ``ModelConfig``, for clients that ask for it.
    """

    name: str
    path: Path
    versions: tuple[int, ...]
    labels: LabelSet
    max_batch_size: int
    instances: int
    delay_ms: float
    resize: str
    family: str
    config: ModelConfig

    def graph(self, version: int) -> Path:
        """The ONNX file of a version."""
        filename: str = self.config.default_model_filename or "model.onnx"
        return self.path / str(version) / filename


def list_models(repository: Path) -> list[Path]:
    """Folders that hold a ``config.pbtxt``, sorted by name.

    Raises:
        InvalidModel: the repository is no folder.
    """
    if not repository.is_dir():
        raise InvalidModel(
            f"no model repository at {repository}; name one with --repository, "
            f"or make one with `segserve export`"
        )
    return sorted(path.parent for path in repository.glob(f"*/{CONFIG_FILE}"))


def read_model(path: Path) -> ModelFolder:
    """Reads and checks one model's folder.

    Raises:
        InvalidModel: the message names the file and the field.
    """
    config = _read_config(path)
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    resize = parameters.get("resize", "stretch")
    if resize != "stretch":
        raise InvalidModel(
            f"{path.name}: parameters.resize is {resize!r}; this version knows only 'stretch'"
        )
    groups = list(config.instance_group)
    return ModelFolder(
        name=path.name,
        path=path,
        versions=_choose_versions(path, config),
        labels=_read_labels(path, parameters),
        max_batch_size=max(1, config.max_batch_size),
        instances=max(1, sum(max(1, group.count) for group in groups)),
        delay_ms=config.dynamic_batching.max_queue_delay_microseconds / 1000.0,
        resize=resize,
        family=parameters.get("family", path.name),
        config=config,
    )


def _read_config(path: Path) -> ModelConfig:
    file = path / CONFIG_FILE
    config = ModelConfig()
    try:
        text_format.Parse(file.read_text("utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidModel(f"{file}: {error}") from None
    if config.name and config.name != path.name:
        raise InvalidModel(f"{file}: name is {config.name!r}, the folder is {path.name!r}")
    config.name = path.name
    if config.platform != "onnxruntime_onnx" and config.backend != "onnxruntime":
        raise InvalidModel(
            f"{file}: platform {config.platform or config.backend!r} is not served here; "
            f'use "onnxruntime_onnx"'
        )
    present = {descriptor.name for descriptor, _ in config.ListFields()}
    refused = [field for field in UNSUPPORTED_FIELDS if field in present]
    if refused:
        raise InvalidModel(f"{file}: not supported: {', '.join(refused)}")
    queue_fields = {d.name for d, _ in config.dynamic_batching.ListFields()}
    unknown = queue_fields - {"max_queue_delay_microseconds", "preferred_batch_size"}
    if unknown:
        raise InvalidModel(
            f"{file}: not supported: dynamic_batching.{', dynamic_batching.'.join(sorted(unknown))}"
        )
    _check_tensors(file, config)
    for group in config.instance_group:
        if group.kind not in (group.KIND_AUTO, group.KIND_CPU, group.KIND_GPU):
            raise InvalidModel(f"{file}: instance_group.kind must be KIND_CPU or KIND_GPU")
    return config


def _check_tensors(file: Path, config: ModelConfig) -> None:
    if [tensor.name for tensor in config.input] != ["image"]:
        raise InvalidModel(f"{file}: expected one input, image: TYPE_UINT8 [H, W, 3]")
    if not config.output:
        raise InvalidModel(f"{file}: no output; expected mask, logits or both")
    for tensor in (*config.input, *config.output):
        if tensor.data_type != TENSOR_TYPES.get(tensor.name):
            raise InvalidModel(
                f"{file}: {tensor.name} is {model_config_pb2.DataType.Name(tensor.data_type)}; "
                f"known: image and mask TYPE_UINT8, logits TYPE_FP32"
            )


def _choose_versions(path: Path, config: ModelConfig) -> tuple[int, ...]:
    filename = config.default_model_filename or "model.onnx"
    present = sorted(
        int(folder.name)
        for folder in path.iterdir()
        if folder.name.isdigit() and int(folder.name) > 0 and (folder / filename).is_file()
    )
    if not present:
        raise InvalidModel(f"{path}: no version folder holds a {filename} (expected 1/{filename})")
    policy = config.version_policy
    if policy.HasField("all"):
        return tuple(present)
    if policy.HasField("specific"):
        missing = sorted(set(policy.specific.versions) - set(present))
        if missing:
            raise InvalidModel(f"{path}: version_policy names {missing}, which are not there")
        return tuple(sorted(policy.specific.versions))
    # Triton's default is the latest one.
    count = policy.latest.num_versions if policy.HasField("latest") else 1
    return tuple(present[-max(1, count) :])


def _read_labels(path: Path, parameters: dict[str, str]) -> LabelSet:
    file = path / LABELS_FILE
    if not file.is_file():
        raise InvalidModel(f"{file} is missing: one class name a line")
    names = tuple(line.strip() for line in file.read_text("utf-8").splitlines() if line.strip())
    if not 1 <= len(names) <= MAX_CLASSES:
        raise InvalidModel(
            f"{file}: {len(names)} classes; a label map holds 1 to {MAX_CLASSES} (ids are bytes)"
        )
    try:
        declared = tuple(json.loads(parameters["classes"])) if "classes" in parameters else names
        palette = parameters.get("palette")
        colors = parse_palette(palette) if palette else default_palette(len(names))
        ignore_label = int(parameters.get("ignore_label", "255"))
    except (ValueError, TypeError) as error:
        raise InvalidModel(f"{path / CONFIG_FILE}: parameters: {error}") from None
    if declared != names:
        raise InvalidModel(
            f"{path / CONFIG_FILE}: parameters.classes and {LABELS_FILE} differ; "
            f"{LABELS_FILE} is the source: {', '.join(names[:5])}..."
        )
    if len(colors) != len(names):
        raise InvalidModel(
            f"{path / CONFIG_FILE}: palette has {len(colors)} colours for {len(names)} classes"
        )
    return LabelSet(names, colors, ignore_label)
