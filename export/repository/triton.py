"""Writes a version of a model into a Triton model repository.

``<repository>/<name>/config.pbtxt``, ``labels.txt`` and a folder a version, for ONNX with
``model.onnx`` in it. Source of the format: ``model_config.proto`` of
triton-inference-server/common.

Everything is written into a folder aside and renamed, so that an interrupted export leaves the
repository as it was. That folder is gone afterwards, however the writing ends. It is locked while
its process lives: so what a killed process left is distinguished from what another one is writing
now, and the next export removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from google.protobuf import text_format
from onnx import ModelProto, TensorProto, ValueInfoProto
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInput, ModelOutput

from export.errors import ExportError, IncompatibleModel, InvalidNetwork
from serving.models.repository import parse_version_folder
from serving.palette import LabelSet, format_palette
from serving.parsing import read_text

ONNX_FILE = "model.onnx"
_TYPES = {
    TensorProto.UINT8: model_config_pb2.TYPE_UINT8,
    TensorProto.UINT16: model_config_pb2.TYPE_UINT16,
    TensorProto.FLOAT: model_config_pb2.TYPE_FP32,
}


@dataclass(frozen=True)
class Tensor:
    """An input or output; ``dims`` leave out the first axis, the batch."""

    name: str
    data_type: int
    dims: tuple[int, ...]


@dataclass(frozen=True)
class ModelFiles:
    """A version, whichever runtime serves it.

    Attributes:
        platform: Triton's name of a file format, else "".
        backend: Triton's name of the runtime where there is no ``platform``, else "".
        write: fills the version's empty folder.
    """

    platform: str
    backend: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    write: Callable[[Path], None]


def onnx_files(model: ModelProto) -> ModelFiles:
    """Returns a version of an ONNX model: ``ONNX_FILE``."""

    def write(folder: Path) -> None:
        (folder / ONNX_FILE).write_bytes(model.SerializeToString())

    inputs, outputs = map(_tensor, model.graph.input), map(_tensor, model.graph.output)
    return ModelFiles("onnxruntime_onnx", "", tuple(inputs), tuple(outputs), write)


def _tensor(value: ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    dims = tuple(d.dim_value for d in tensor.shape.dim)[1:]
    return Tensor(value.name, int(_TYPES[tensor.elem_type]), dims)


_PREFIX = ".export-"


@contextmanager
def folder_aside(repository: Path) -> Iterator[Path]:
    """Yields an empty folder in ``repository``, on the same file system.

    SIGTERM ends the process with its usual code, but not before the folder is gone.
    """
    _clear_abandoned(repository)
    aside = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=repository))
    lock = os.open(aside, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _termination_as_exit():
            yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(lock)


def _clear_abandoned(repository: Path) -> None:
    for aside in repository.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # no folder, or gone by now
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            os.close(lock)


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Has SIGTERM raise SystemExit, where a program does not handle it in a way of its own."""
    default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@dataclass(frozen=True)
class ModelFacts:
    """The facts that the repository holds about a model beside its tensors; None and "" are left
    out.

    ``resize`` and ``tile_overlap`` are the server's parameters of these names.
    """

    labels: LabelSet
    family: str | None
    dataset: str | None
    accuracy: str | None
    provenance: str
    resize: str = "stretch"
    tile_overlap: str | None = None

    def parameters(self) -> dict[str, str]:
        """Returns the ``parameters`` of ``config.pbtxt``."""
        values = {
            "classes": json.dumps(list(self.labels.names), ensure_ascii=False),
            "palette": format_palette(self.labels.colors),
            "ignore_label": str(self.labels.ignore_label),
            "resize": self.resize,
            "tile_overlap": self.tile_overlap,
            "family": self.family,
            "dataset": self.dataset,
            "accuracy": self.accuracy,
            "provenance": self.provenance,
        }
        return {key: value for key, value in values.items() if value}


def model_config(
    name: str, files: ModelFiles, facts: ModelFacts, max_batch_size: int
) -> ModelConfig:
    """Returns the configuration of a model whose tensors' first axis is the batch.

    ``dims`` leave the batch out where ``max_batch_size`` is above 0, as Triton wants it.
    """
    config = ModelConfig(
        name=name, platform=files.platform, backend=files.backend, max_batch_size=max_batch_size
    )
    batch = () if max_batch_size > 0 else (-1,)
    for field, tensors in ((config.input, files.inputs), (config.output, files.outputs)):
        for tensor in tensors:
            field.add(name=tensor.name, data_type=tensor.data_type, dims=(*batch, *tensor.dims))
    if max_batch_size > 1:
        config.dynamic_batching.SetInParent()
    _set_parameters(config, facts)
    return config


def variant_name(network: str, variant: str) -> str:
    """Returns the model's name for a network in one precision or format; fp32 bears the network's
    own.

    One repository model has one format and one precision.
    """
    return network if variant == "fp32" else f"{network}_{variant}"


def write_model(
    repository: Path, name: str, model: ModelProto, facts: ModelFacts, max_batch_size: int | None
) -> Path:
    """Adds an ONNX model, or the next version of one; see :func:`write_version`."""
    return write_version(repository, name, onnx_files(model), facts, max_batch_size)


def write_version(
    repository: Path,
    name: str,
    files: ModelFiles,
    facts: ModelFacts,
    max_batch_size: int | None,
) -> Path:
    """Adds a model, or the next version of one; returns the version's folder.

    A next version keeps the model's configuration, as people may have edited it, but for the
    facts (and ``max_batch_size`` where given; a new model's default is 4). Raises
    IncompatibleModel where the existing model has another format, or other inputs, outputs,
    classes or colours.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ExportError(
            f"{name!r} is not a valid model name: expected letters, digits, '_', '-' and '.', the"
            " first one a letter, a digit or '_'; choose another --name"
        )
    folder = repository / name
    exists = folder.exists()
    if exists:
        config = _next_config(folder, files, facts, max_batch_size)
    else:
        config = model_config(name, files, facts, 4 if max_batch_size is None else max_batch_size)
    repository.mkdir(parents=True, exist_ok=True)
    version = max(_versions(folder), default=0) + 1
    with folder_aside(repository) as aside:
        # One level deeper than models are, so that no server takes it for one.
        part = aside / name
        (part / str(version)).mkdir(parents=True)
        files.write(part / str(version))
        (part / "labels.txt").write_text("".join(f"{n}\n" for n in facts.labels.names), "utf-8")
        (part / "config.pbtxt").write_text(_text(config), "utf-8")
        _flush(part)
        if exists:
            os.rename(part / str(version), folder / str(version))
            try:
                os.replace(part / "config.pbtxt", folder / "config.pbtxt")
            except BaseException:
                os.rename(folder / str(version), part / str(version))
                raise
        else:
            os.rename(part, folder)
    return folder / str(version)


def read_config(folder: Path) -> ModelConfig:
    """Returns the configuration of a model's folder, under the folder's name. Raises
    InvalidNetwork."""
    file, config = folder / "config.pbtxt", ModelConfig()
    try:
        text_format.Parse(read_text(file), config)
    except (OSError, ValueError, text_format.ParseError) as error:
        raise InvalidNetwork(f"{file}: {error}") from error
    config.name = folder.name
    return config


def _next_config(
    folder: Path, files: ModelFiles, facts: ModelFacts, max_batch_size: int | None
) -> ModelConfig:
    try:
        existing = read_config(folder)
    except InvalidNetwork as error:
        raise IncompatibleModel(
            f"{folder} is there but not readable as a model ({error}); choose another --name"
        ) from error
    wanted = model_config(folder.name, files, facts, existing.max_batch_size)
    differing = [
        what
        for what, same in (
            ("format", _format(existing) == _format(wanted)),
            ("inputs", _tensors(existing.input) == _tensors(wanted.input)),
            ("outputs", _tensors(existing.output) == _tensors(wanted.output)),
            ("classes", _classes(existing, folder) == list(facts.labels.names)),
            ("palette", _parameter(existing, "palette") == _parameter(wanted, "palette")),
        )
        if not same
    ]
    if differing:
        raise IncompatibleModel(
            f"{folder} has different {', '.join(differing)}, so this cannot be its next version;"
            " choose another --name"
        )
    if max_batch_size is not None and max_batch_size != existing.max_batch_size:
        if (max_batch_size > 0) != (existing.max_batch_size > 0):
            raise IncompatibleModel(
                f"{folder}: max_batch_size {existing.max_batch_size} and {max_batch_size} write"
                " shapes differently; choose another --name"
            )
        existing.max_batch_size = max_batch_size
    for key in ("accuracy", "dataset"):  # never the older version's
        existing.parameters.pop(key, None)
    edited = {key: _parameter(existing, key) for key in ("resize", "tile_overlap")}
    _set_parameters(existing, facts)
    for key, value in edited.items():  # how the server uses it does not depend on the version
        if value:
            existing.parameters[key].string_value = value
    return existing


def _set_parameters(config: ModelConfig, facts: ModelFacts) -> None:
    for key, value in facts.parameters().items():
        config.parameters[key].string_value = value


def _parameter(config: ModelConfig, key: str) -> str:
    return str(config.parameters[key].string_value) if key in config.parameters else ""


def _classes(config: ModelConfig, folder: Path) -> object:
    try:
        if text := _parameter(config, "classes"):
            return json.loads(text)
        return read_text(folder / "labels.txt").splitlines()
    except (OSError, ValueError):
        return None


def _tensors(
    tensors: Iterable[ModelInput | ModelOutput],
) -> list[tuple[str, int, tuple[int, ...]]]:
    return sorted((t.name, t.data_type, tuple(t.dims)) for t in tensors)


def _format(config: ModelConfig) -> str:
    # Triton takes either of the two names for ONNX.
    return {"onnxruntime_onnx": "onnxruntime"}.get(str(config.platform), str(config.backend))


def _versions(folder: Path) -> list[int]:
    return [v for p in folder.glob("*") if (v := parse_version_folder(p.name)) is not None]


def _text(config: ModelConfig) -> str:
    return str(text_format.MessageToString(config, as_utf8=True))


def _flush(folder: Path) -> None:
    """Has the files on the disk before a rename makes them visible."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
