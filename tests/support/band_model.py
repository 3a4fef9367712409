"""A model whose answers follow from the pixels: eight bands of red are its eight classes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.imaging.geometry import Size
from serving.models.loader import OpenEngine
from serving.models.repository import ModelFolder
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread

MODEL_SIZE = Size(32, 48)
CLASSES = tuple(f"band{index}" for index in range(8))

CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 4
input {{ name: "image" data_type: TYPE_UINT8 dims: [ {h}, {w}, 3 ] }}
output {{ name: "mask" data_type: TYPE_UINT8 dims: [ {h}, {w} ] }}
output {{ name: "confidence" data_type: TYPE_UINT8 dims: [ {h}, {w} ] }}
output {{ name: "logits" data_type: TYPE_FP32 dims: [ 8, {h}, {w} ] }}
dynamic_batching {{ }}
parameters {{ key: "accuracy" value {{ string_value: "none: a fake" }} }}
"""


def write_model(
    repository: Path, name: str = "bands", size: Size = MODEL_SIZE, **parameters: str
) -> Path:
    """A folder that reads well; its graph is never opened."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").touch()
    (folder / "config.pbtxt").write_text(
        CONFIG.format(h=size.height, w=size.width)
        + "".join(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
            for key, value in parameters.items()
        )
    )
    (folder / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def free_ports(repository: Path) -> Settings:
    return Settings(
        repository=repository, http_port=0, grpc_port=0, metrics_port=0, drain_seconds=0.0
    )


def serve_fake(engine: FakeEngine) -> OpenEngine:
    return lambda folder, version, settings: engine


def serve_fakes(folder: ModelFolder, version: int, settings: Settings) -> FakeEngine:
    """An engine for each model, of the size that its configuration says."""
    return FakeEngine(Size(*folder.config.input[0].dims[:2]))


@dataclass(frozen=True)
class Served:
    """A running server, its engine, and where it listens."""

    server: Server
    engine: FakeEngine

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.server.ports.http}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.server.ports.grpc}"


@contextmanager
def serve_bands(folder: Path) -> Iterator[Served]:
    """A server of the model on free ports; ``folder`` becomes its repository."""
    write_model(folder)
    engine = FakeEngine(MODEL_SIZE)
    with ServerThread(free_ports(folder), serve_fake(engine)) as server:
        yield Served(server, engine)


def bands(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Eight vertical bands of red, class 0 at the left to class 7 at the right."""
    label = np.arange(width) * 8 // width
    row = np.stack([label * 32 + 16, np.full(width, 90), np.full(width, 40)], 1)
    return np.broadcast_to(row.astype(np.uint8), (height, width, 3)).copy()


def band_labels(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.broadcast_to((np.arange(width) * 8 // width).astype(np.uint8), (height, width))


def encode(pixels: npt.NDArray[np.uint8], format: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and ends there."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
