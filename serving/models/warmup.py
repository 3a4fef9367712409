"""Warms a version up: the runs of ``model_warmup``, before it takes requests.

Source: triton-inference-server/common protobuf/model_config.proto, ``ModelWarmup``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2

from serving.engine import Engine
from serving.errors import InvalidModel
from serving.formats import class_statistics
from serving.formats import registry as formats
from serving.imaging import blending, restore
from serving.models.repository import CONFIG_FILE, ModelFolder
from serving.palette import MAX_BYTE_CLASSES

INPUT = "image"
FOLDER = "warmup"


@dataclass(frozen=True)
class Warmup:
    """An entry of ``model_warmup``: ``count`` runs of a batch, uint8 ``[n,H,W,3]``."""

    name: str
    batch: npt.NDArray[np.uint8]
    count: int


def warm_up(engine: Engine, folder: ModelFolder) -> None:
    """Runs every batch size once, then what the configuration asks for.

    The loops for label maps of two bytes a pixel are compiled for the first model that has them.

    Raises:
        InvalidModel: an entry that the model cannot run; the message names it.
        EngineFailed: a run failed.
    """
    warmups = tuple(read_warmups(folder))
    if engine.spec.label_type != np.uint8:
        for loops in (restore, formats, class_statistics, blending):
            loops.warm(MAX_BYTE_CLASSES + 1)
    engine.warm()
    for warmup in warmups:
        for _ in range(warmup.count):
            engine.run(warmup.batch)


def read_warmups(folder: ModelFolder) -> Iterator[Warmup]:
    """Reads the entries of ``model_warmup`` with their data.

    Raises:
        InvalidModel: see ``warm_up``.
    """
    dims = tuple(folder.config.input[0].dims)
    shape = dims[-3:]  # without the batch, which they hold where max_batch_size is 0
    for entry in folder.config.model_warmup:
        where = f"{folder.path / CONFIG_FILE}: model_warmup {entry.name!r}"
        size = max(1, entry.batch_size)
        if size > folder.max_batch_size:
            raise InvalidModel(
                f"{where}: batch_size is {size}, max_batch_size {folder.max_batch_size}"
            )
        if set(entry.inputs) != {INPUT}:
            raise InvalidModel(f"{where}: inputs are {sorted(entry.inputs)}; expected {INPUT!r}")
        tensor = entry.inputs[INPUT]
        if tensor.data_type != model_config_pb2.TYPE_UINT8 or tuple(tensor.dims) != dims:
            raise InvalidModel(f"{where}: {INPUT} must be TYPE_UINT8 {list(dims)}")
        image = _read_image(where, folder.path, tensor, shape)
        # A larger batch is made of copies, as in Triton.
        batch = np.repeat(image[None], size, axis=0)
        yield Warmup(entry.name, batch, max(1, entry.count))


def _read_image(
    where: str, path: Path, tensor: model_config_pb2.ModelWarmup.Input, shape: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    kind = tensor.WhichOneof("input_data_type")
    if kind == "zero_data" and tensor.zero_data:
        return np.zeros(shape, np.uint8)
    if kind == "random_data" and tensor.random_data:
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if kind != "input_data_file":
        raise InvalidModel(f"{where}: needs zero_data, random_data or input_data_file")
    # Of a path only the name: nothing outside the model's own folder is read.
    file = path / FOLDER / Path(tensor.input_data_file).name
    try:
        data = np.fromfile(file, np.uint8)
    except OSError as error:
        raise InvalidModel(f"{where}: {file}: {error.strerror}") from None
    if data.size != np.prod(shape):
        raise InvalidModel(f"{where}: {file} has {data.size} bytes, not {np.prod(shape)}")
    return data.reshape(shape)
