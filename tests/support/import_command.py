"""``segserve import-onnx`` in this process, and what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import typer
from typer.testing import CliRunner, Result

from export.onnx_import import cli as import_cli
from serving.engines.cpu_choice import has_openvino
from serving.engines.onnxruntime import OnnxEngine
from serving.models.repository import ModelFolder, read_model
from tests.support.engine_parity import check_parity

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--range", "1")

Predict = Callable[[npt.NDArray[np.uint8]], dict[str, npt.NDArray[np.generic]]]


def run_import(repository: Path, path: Path, *arguments: object) -> Result:
    """The command's result; it writes into ``repository``."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(import_cli.import_onnx)
    given = [str(path), *map(str, arguments), "--repository", str(repository)]
    return CliRunner().invoke(app, given)


def open_imported(
    repository: Path, result: Result, name: str = "net"
) -> tuple[ModelFolder, Predict]:
    """What a command that went well wrote: the folder, and its graph's outputs for images."""
    assert result.exit_code == 0, result.output
    folder = read_model(repository / name)
    path = folder.graph(folder.versions[-1])
    if has_openvino():
        check_parity(path, batch_sizes=(min(2, folder.max_batch_size),))
    else:
        OnnxEngine(path, instances=1, threads=1, max_batch_size=folder.max_batch_size).close()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def predict(images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.generic]]:
        return dict(zip(names, session.run(None, {"image": images}), strict=True))

    return folder, predict


def normalised(
    images: npt.NDArray[np.uint8],
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    maximum: float = 1.0,
) -> npt.NDArray[np.float32]:
    """uint8 [n, H, W, 3] to the network's float32 [n, 3, H, W]."""
    values = (images * (maximum / 255) - np.array(mean)) / np.array(std)
    return np.ascontiguousarray(values.astype(np.float32).transpose(0, 3, 1, 2))
