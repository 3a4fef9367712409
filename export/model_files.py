"""What a version of a model is made of: its tensors, its runtime and its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, TensorProto, ValueInfoProto
from tritonclient.grpc import model_config_pb2

ONNX_FILE = "model.onnx"
_TYPES = {
    TensorProto.UINT8: model_config_pb2.TYPE_UINT8,
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
    """A version of an ONNX model: ``ONNX_FILE``."""

    def write(folder: Path) -> None:
        (folder / ONNX_FILE).write_bytes(model.SerializeToString())

    inputs, outputs = map(_tensor, model.graph.input), map(_tensor, model.graph.output)
    return ModelFiles("onnxruntime_onnx", "", tuple(inputs), tuple(outputs), write)


def _tensor(value: ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    dims = tuple(d.dim_value for d in tensor.shape.dim)[1:]
    return Tensor(value.name, int(_TYPES[tensor.elem_type]), dims)
