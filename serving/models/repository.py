"""Reads a Triton model repository: ``<name>/{config.pbtxt,labels.txt,<version>/model.onnx}``.

``config.pbtxt`` is Triton's ``ModelConfig``; fields mean what they mean there. What this server
does not do is refused by name, never ignored. Segmentation facts are in ``parameters``.

Source: triton-inference-server/common protobuf/model_config.proto;
server docs/user_guide/model_configuration.md.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serving.batching.queue import Scheduling
from serving.engines.acceleration import read_acceleration
from serving.errors import InvalidModel
from serving.models.parameters import (
    LABELS_FILE,
    read_labels,
    read_resize,
    read_scheduling,
    read_tile_overlap,
)
from serving.palette import MAX_BYTE_CLASSES, LabelSet, label_type
from serving.parsing import read_text

ModelConfig: TypeAlias = model_config_pb2.ModelConfig

CONFIG_FILE = "config.pbtxt"
# Above these the start would never end: each instance is a session, each batch size a warm-up run.
MAX_INSTANCES = 256
MAX_BATCH_SIZE = 1024
# Where file systems keep what their checks find.
_NOT_MODELS = frozenset({"lost+found"})
_LIKE_A_VERSION = re.compile(r"[+-]?[\d.,_]+")

_BYTES = model_config_pb2.TYPE_UINT8
TENSOR_TYPES = {
    "image": (_BYTES,),
    "mask": (_BYTES, model_config_pb2.TYPE_UINT16),
    "confidence": (_BYTES,),
    "logits": (model_config_pb2.TYPE_FP32,),
}

_SHAPES = {
    "image": ("H", "W", "3"),
    "mask": ("H", "W"),
    "confidence": ("H", "W"),
    "logits": ("C", "h", "w"),
}
TENSOR_RANKS = {name: len(shape) for name, shape in _SHAPES.items()}

# Fields of ModelConfig that change behaviour and that this server does not implement.
UNSUPPORTED_FIELDS = (
    "ensemble_scheduling",
    "sequence_batching",
    "model_transaction_policy",
    "model_operations",
    "batch_input",
    "batch_output",
    "model_repository_agents",
    "model_metrics",
)
UNSUPPORTED_TENSOR_FIELDS = {"reshape", "is_shape_tensor", "allow_ragged_batch", "optional"}
UNSUPPORTED_GROUP_FIELDS = ("rate_limiter", "passive", "secondary_devices", "host_policy")


@dataclass(frozen=True)
class ModelFolder:
    """A model of the repository, checked, not loaded.

    Attributes:
        versions: the versions to serve, ascending; the last one answers unversioned requests.
        ignored: folders of the model that look like versions and are not, each with the reason.
        scheduling: ``dynamic_batching``.
        instances: instances of all groups together.
        resize: one of ``serving.imaging.geometry.RESIZES``.
        tile_overlap: what neighbouring tiles share at least, as a part of their length.
        config: the whole ``ModelConfig``, for clients that ask for it.
    """

    name: str
    path: Path
    versions: tuple[int, ...]
    ignored: Mapping[str, str]
    labels: LabelSet
    max_batch_size: int
    instances: int
    scheduling: Scheduling
    resize: str
    tile_overlap: float
    family: str
    config: ModelConfig

    def graph(self, version: int) -> Path:
        """Returns the ONNX file of a version."""
        filename: str = self.config.default_model_filename or "model.onnx"
        return self.path / str(version) / filename


def list_models(repository: Path) -> list[Path]:
    """Returns the folders that are models, or were meant to be, sorted by name.

    One with versions or labels and without a ``config.pbtxt`` is a model that cannot be served.

    Raises:
        InvalidModel: the repository is not a folder that can be listed.
    """
    return [path for path in _list_folders(repository) if _is_like_a_model(path)]


def list_other_folders(repository: Path) -> list[Path]:
    """Returns the folders that hold nothing of a model, sorted by name; not the hidden ones.

    Raises:
        InvalidModel: as :func:`list_models`.
    """
    return [path for path in _list_folders(repository) if not _is_like_a_model(path)]


def _list_folders(repository: Path) -> list[Path]:
    try:
        entries = list(os.scandir(repository))
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidModel(
            f"no model repository at {repository}; name one with --repository, "
            f"or make one with `segserve export`"
        ) from None
    except OSError as error:
        raise InvalidModel(f"{repository} cannot be listed: {error.strerror or error}") from None
    return sorted(
        repository / entry.name
        for entry in entries
        if not entry.name.startswith(".") and entry.name not in _NOT_MODELS and _is_folder(entry)
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder, or may be one: what cannot be read is not lost."""
    try:
        return stat.S_ISDIR(entry.stat().st_mode)
    except FileNotFoundError:
        return entry.is_symlink()
    except OSError:
        return True


def _is_like_a_model(folder: Path) -> bool:
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except OSError:  # It is named with that error when it is read.
        return True
    return bool(names & {CONFIG_FILE, LABELS_FILE}) or any(map(_is_like_a_version, names))


def _is_like_a_version(name: str) -> bool:
    return bool(_LIKE_A_VERSION.fullmatch(name)) or name.isnumeric()


def parse_version_folder(name: str) -> int | None:
    """Returns the version that a folder of that name holds, None for any other name.

    ASCII digits without a leading zero, as in Triton, and nine of them at most.
    """
    return int(name) if re.fullmatch("[1-9][0-9]{0,8}", name, re.ASCII) else None


def read_model(path: Path) -> ModelFolder:
    """Reads and checks one model's folder.

    Raises:
        InvalidModel: the message names the file and the field.
    """
    try:
        config = _read_config(path)
        versions = choose_versions(path, config)
        ignored = find_ignored(path, config)
        return _describe(config, path, path / CONFIG_FILE, versions, path, ignored)
    except OSError as error:
        raise InvalidModel(f"{error.filename or path}: {error.strerror or error}") from None


def describe_remote(config: ModelConfig, versions: tuple[int, ...]) -> ModelFolder:
    """Describes a model of a Triton server, whatever platform it has there.

    Raises:
        InvalidModel: it is not of the contract; the message names the field.
    """
    where = Path(config.name) / CONFIG_FILE
    _check_tensors(where, config)
    return _describe(config, Path(config.name), where, versions, None, {})


def _describe(
    config: ModelConfig,
    path: Path,
    where: Path,
    versions: tuple[int, ...],
    labels: Path | None,
    ignored: Mapping[str, str],
) -> ModelFolder:
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    groups = list(config.instance_group)
    known = read_labels(where, parameters, labels)
    _check_mask(where, config, len(known.names))
    return ModelFolder(
        name=config.name,
        path=path,
        versions=versions,
        ignored=ignored,
        labels=known,
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
    _check_name(path)
    try:
        text = read_text(file, regular=True)
    except FileNotFoundError:
        raise InvalidModel(
            f"{path} has no {CONFIG_FILE}; a model's folder holds {CONFIG_FILE}, labels.txt and a "
            f"folder a version"
        ) from None
    except ValueError as error:
        raise InvalidModel(str(error)) from None
    try:
        text_format.Parse(text, config)
    except (text_format.ParseError, ValueError, RecursionError) as error:
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
    _check_counts(file, config)
    _check_dims(file, config)
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


def show_name(path: Path) -> str:
    """Returns a folder's name as JSON and gRPC can carry it: what is not UTF-8 is escaped."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def _check_name(path: Path) -> None:
    """Checks a name: it goes into protobuf messages, JSON, metric labels and lines of a log."""
    if show_name(path) != path.name or not path.name.isprintable():
        raise InvalidModel(
            f"{path.parent}: the folder {path.name!a} does not have a valid model name; expected "
            f"printable characters in UTF-8"
        )


def _check_counts(file: Path, config: ModelConfig) -> None:
    if not 0 <= config.max_batch_size <= MAX_BATCH_SIZE:
        raise InvalidModel(
            f"{file}: max_batch_size is {config.max_batch_size}; expected 0 to {MAX_BATCH_SIZE}"
        )
    # A group makes its count on each of its GPUs.
    instances = sum(max(1, g.count) * max(1, len(g.gpus)) for g in config.instance_group)
    if instances > MAX_INSTANCES or any(group.count < 0 for group in config.instance_group):
        raise InvalidModel(
            f"{file}: instance_group asks for {instances} instances; expected 1 to {MAX_INSTANCES}"
        )


def _check_dims(file: Path, config: ModelConfig) -> None:
    """Checks that shapes are written as ``max_batch_size`` says, as clients see them."""
    for tensor in (*config.input, *config.output):
        rank, dims = TENSOR_RANKS[tensor.name], list(tensor.dims)
        if config.max_batch_size == 0 and len(dims) == rank:
            raise InvalidModel(
                f"{file}: max_batch_size is 0, so that dims are whole shapes, and {tensor.name} is "
                f"{dims} without the batch; write dims {[1, *dims]}, or a max_batch_size of 1 or "
                f"more"
            )
        expected = rank if config.max_batch_size else rank + 1
        batch = [] if config.max_batch_size else [1]
        if len(dims) != expected or dims[: len(batch)] != batch or min(dims) < 1:
            shape = ", ".join([*map(str, batch), *_SHAPES[tensor.name]])
            raise InvalidModel(
                f"{file}: {tensor.name} has dims {dims}; expected [{shape}], all of them static"
            )
        given = {descriptor.name for descriptor, _ in tensor.ListFields()}
        refused = sorted(given & UNSUPPORTED_TENSOR_FIELDS)
        if refused:
            raise InvalidModel(
                f"{file}: not supported: {', '.join(refused)} of {tensor.name}; its dims are the "
                f"graph's own"
            )
    formats = {model_config_pb2.ModelInput.FORMAT_NONE, model_config_pb2.ModelInput.FORMAT_NHWC}
    if any(tensor.format not in formats for tensor in config.input):
        raise InvalidModel(f"{file}: image has FORMAT_NCHW; expected FORMAT_NHWC or none")


def _check_tensors(file: Path, config: ModelConfig) -> None:
    if [tensor.name for tensor in config.input] != ["image"]:
        raise InvalidModel(f"{file}: expected one input, image: TYPE_UINT8 [H, W, 3]")
    if not config.output:
        raise InvalidModel(f"{file}: no output; expected mask, logits or both")
    for tensor in (*config.input, *config.output):
        if tensor.data_type not in TENSOR_TYPES.get(tensor.name, ()):
            raise InvalidModel(
                f"{file}: {tensor.name} is {model_config_pb2.DataType.Name(tensor.data_type)}; "
                f"known: image and confidence TYPE_UINT8, mask TYPE_UINT8 (above 255 classes "
                f"TYPE_UINT16), logits TYPE_FP32"
            )
    names = [tensor.name for tensor in config.output]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidModel(f"{file}: output {', '.join(twice)} is named twice")


def _check_mask(file: Path, config: ModelConfig, classes: int) -> None:
    """Checks that ``mask`` is wide enough for the classes, and no wider."""
    wanted = f"TYPE_{label_type(classes).name.upper()}"
    for tensor in config.output:
        given = model_config_pb2.DataType.Name(tensor.data_type)
        if tensor.name == "mask" and given != wanted:
            raise InvalidModel(
                f"{file}: mask is {given}; expected {wanted} for {classes} classes (up to "
                f"{MAX_BYTE_CLASSES} TYPE_UINT8, above TYPE_UINT16)"
            )


def choose_versions(path: Path, config: ModelConfig) -> tuple[int, ...]:
    """Returns the versions of a model's folder that its policy serves, ascending.

    Raises:
        InvalidModel: there are none, or the policy names absent ones.
    """
    filename = _graph_file(config)
    present = sorted(
        version
        for folder in path.iterdir()
        if (version := parse_version_folder(folder.name)) is not None
        and not _why_no_file(folder / filename)
    )
    if not present:
        ignored = "".join(f"; {name}: {why}" for name, why in find_ignored(path, config).items())
        raise InvalidModel(
            f"{path}: no version folder holds a {filename} (expected 1/{filename}){ignored}"
        )
    policy = config.version_policy
    if policy.HasField("all"):
        return tuple(present)
    if policy.HasField("specific"):
        missing = sorted(set(policy.specific.versions) - set(present))
        if missing:
            raise InvalidModel(f"{path}: version_policy names {missing}, which are not there")
        if not policy.specific.versions:
            raise InvalidModel(f"{path}: version_policy.specific names no version")
        return tuple(sorted(set(policy.specific.versions)))
    # Triton's default is the latest one.
    count = policy.latest.num_versions if policy.HasField("latest") else 1
    return tuple(present[-max(1, count) :])


def find_ignored(path: Path, config: ModelConfig) -> dict[str, str]:
    """Returns the folders of a model that look like versions and are not served, and why."""
    filename = _graph_file(config)
    ignored = {}
    for folder in sorted(path.iterdir()):
        name = folder.name
        missing = _why_no_file(folder / filename)
        if parse_version_folder(name) is not None:
            if missing:
                ignored[name] = missing
        elif not missing or _is_like_a_version(name):
            shown = show_name(folder)
            ignored[shown] = (
                f"{path.name}/{shown} is not a version folder: expected a number from 1 to "
                f"999999999 in ASCII digits, without a leading zero"
            )
    return ignored


def _why_no_file(file: Path) -> str:
    """Returns what is wrong with the file of one version; empty where nothing is."""
    try:
        kind = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return f"{file.parent} holds no {file.name}"
    except OSError as error:
        return f"{file}: {error.strerror or error}"
    return "" if stat.S_ISREG(kind) else f"{file} is not a regular file"


def _graph_file(config: ModelConfig) -> str:
    """Returns the name of a version's graph, which must be a file in the version's folder."""
    usual = "model.py" if config.backend == "python" else "model.onnx"
    filename: str = config.default_model_filename or usual
    if Path(filename).name != filename or filename in (".", ".."):
        raise InvalidModel(
            f"{config.name}/{CONFIG_FILE}: default_model_filename is {filename!r}; expected the "
            f"name of a file in the version's folder"
        )
    return filename
