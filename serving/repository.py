"""Reads a Triton model repository: ``<name>/{config.pbtxt,labels.txt,<version>/model.onnx}``.

``config.pbtxt`` is Triton's ``ModelConfig``; fields mean what they mean there. What this server
does not do is refused by name, never ignored. Segmentation facts are in ``parameters``.

Source: triton-inference-server/common protobuf/model_config.proto;
server docs/user_guide/model_configuration.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serving.batching.queue_policy import Scheduling, read_scheduling
from serving.engines.acceleration import read_acceleration
from serving.errors import InvalidModel
from serving.models.parameters import read_labels, read_resize, read_tile_overlap
from serving.palette import LabelSet

ModelConfig: TypeAlias = model_config_pb2.ModelConfig

CONFIG_FILE = "config.pbtxt"

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
    "model_repository_agents",
    "model_metrics",
)
UNSUPPORTED_GROUP_FIELDS = ("rate_limiter", "passive", "secondary_devices", "host_policy")


@dataclass(frozen=True)
class ModelFolder:
    """One model of the repository, checked, not loaded.

    Attributes:
        versions: the versions to serve, ascending; the last one answers unversioned requests.
        scheduling: ``dynamic_batching``.
        instances: instances of all groups together.
        resize: one of ``serving.geometry.RESIZES``.
        tile_overlap: what neighbouring tiles share at least, as a part of their length.
        config: the whole ``ModelConfig``, for clients that ask for it.
    """

    name: str
    path: Path
    versions: tuple[int, ...]
    labels: LabelSet
    max_batch_size: int
    instances: int
    scheduling: Scheduling
    resize: str
    tile_overlap: float
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
    return _describe(config, path, path / CONFIG_FILE, choose_versions(path, config), path)


def describe_remote(config: ModelConfig, versions: tuple[int, ...]) -> ModelFolder:
    """A model of a Triton server; whatever platform it has there.

    Raises:
        InvalidModel: it is not of the contract; the message names the field.
    """
    where = Path(config.name) / CONFIG_FILE
    _check_tensors(where, config)
    return _describe(config, Path(config.name), where, versions, None)


def _describe(
    config: ModelConfig, path: Path, where: Path, versions: tuple[int, ...], labels: Path | None
) -> ModelFolder:
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    groups = list(config.instance_group)
    return ModelFolder(
        name=config.name,
        path=path,
        versions=versions,
        labels=read_labels(where, parameters, labels),
        max_batch_size=max(1, config.max_batch_size),
        instances=max(1, sum(max(1, group.count) for group in groups)),
        scheduling=read_scheduling(where, config.dynamic_batching, max(1, config.max_batch_size)),
        resize=read_resize(where, parameters),
        tile_overlap=read_tile_overlap(where, parameters),
        family=parameters.get("family", config.name),
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
    if config.backend == "python":
        raise InvalidModel(
            f'{file}: backend "python" (an MXNet graph, for one) runs in Triton alone: serve the'
            " folder there (deploy/triton/start.py --mxnet), or export the network as ONNX"
            " (`segserve export` without --format mxnet)"
        )
    if config.platform != "onnxruntime_onnx" and config.backend != "onnxruntime":
        raise InvalidModel(
            f"{file}: platform {config.platform or config.backend!r} is not served here; "
            f'use "onnxruntime_onnx"'
        )
    present = {descriptor.name for descriptor, _ in config.ListFields()}
    refused = [field for field in UNSUPPORTED_FIELDS if field in present]
    if refused:
        raise InvalidModel(f"{file}: not supported: {', '.join(refused)}")
    _check_tensors(file, config)
    for group in config.instance_group:
        if group.kind not in (group.KIND_AUTO, group.KIND_CPU, group.KIND_GPU):
            raise InvalidModel(f"{file}: instance_group.kind must be KIND_CPU or KIND_GPU")
        given = {descriptor.name for descriptor, _ in group.ListFields()}
        refused = [
            f"instance_group.{field}" for field in UNSUPPORTED_GROUP_FIELDS if field in given
        ]
        if refused:
            raise InvalidModel(f"{file}: not supported: {', '.join(refused)}")
    read_acceleration(file, config)
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


def choose_versions(path: Path, config: ModelConfig) -> tuple[int, ...]:
    """The versions of a model's folder that its policy has served, ascending.

    Raises:
        InvalidModel: there are none, or the policy names absent ones.
    """
    usual = "model.py" if config.backend == "python" else "model.onnx"
    filename = config.default_model_filename or usual
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
