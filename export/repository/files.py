"""What a version of a model is made of, and the folder that it is written in first.

The folder lies beside what is written and is gone afterwards, however the writing ends. It is
locked while its process lives. So what a killed process left is distinguished from what
another one is writing now, and the next export clears it away.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from onnx import ModelProto, TensorProto, ValueInfoProto
from tritonclient.grpc import model_config_pb2

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
