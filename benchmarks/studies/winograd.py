"""Compares direct convolutions with Winograd's form, for layers of segmentation networks.

``python -m benchmarks.studies.winograd [--layers 512x512@32x64:4]``, a layer as
INPUTSxOUTPUTS@HEIGHTxWIDTH and ``:DILATION``. Both forms take turns. Printed are the measured gain,
the one that ``serving/engines/winograd_cost.py`` expects, and the largest difference as a share of
the largest output.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

from benchmarks.engines.onnxruntime import open_on_cpu
from benchmarks.machine import RESULTS, ResultsFolder, read_machine, write_result
from benchmarks.timing import Spread, ratios, time_in_turn
from serving.engines import winograd
from serving.engines.acceleration import Acceleration
from serving.engines.onnxruntime import session_options
from serving.engines.winograd_cost import Layer, Plan, choose_plan, estimate

LAYERS = (
    "2048x512@32x64", "512x512@32x64:4", "256x256@32x64:2",  # ICNet at 1024x2048
    "256x128@64x128:2", "128x128@128x256:2", "64x128@256x512",
    "2048x512@128x256", "512x512@128x256:4", "256x256@128x256:2",  # PSPNet at 1024x2048
)  # fmt: skip
HEAD = (
    "| layer | direct, ms | Winograd, ms | gain | expected | chosen | difference |",
    "|---" * 7 + "|",
)
_LAYER = re.compile(r"(\d+)x(\d+)@(\d+)x(\d+)(?::(\d+))?")


@dataclass(frozen=True)
class Row:
    """The figures of one layer; ``gain`` is the direct time over Winograd's, turn by turn."""

    layer: str
    plan: Plan
    chosen: bool
    direct_ms: Spread
    winograd_ms: Spread
    gain: Spread
    expected: float
    difference: float

    def line(self) -> str:
        chosen = "yes" if self.chosen else "no"
        return (
            f"| {self.layer} | {self.direct_ms} | {self.winograd_ms} | {self.gain} "
            f"| {self.expected:.2f} | {chosen} | {self.difference:.1e} |"
        )


def read_layer(text: str) -> Layer:
    """Reads a layer. Raises ``typer.BadParameter`` where the text is not one."""
    found = _LAYER.fullmatch(text)
    if found is None:
        raise typer.BadParameter(
            f"{text!r} is not a valid layer: expected INPUTSxOUTPUTS@HEIGHTxWIDTH[:DILATION], for"
            " example 512x512@32x64:4"
        )
    return Layer(*(int(part or 1) for part in found.groups()))


def make_convolution(layer: Layer) -> onnx.ModelProto:
    """Returns a model of one layer with random weights."""
    rng = np.random.default_rng(0)
    shape = (layer.outputs, layer.inputs, 3, 3)
    weights = rng.standard_normal(shape, np.float32) * np.float32((9 * layer.inputs) ** -0.5)
    around = {"dilations": [layer.dilation] * 2, "pads": [layer.dilation] * 4}
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], **around)
    size = [1, layer.inputs, layer.height, layer.width]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, layer.outputs, *size[2:]])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measure(text: str, threads: int, turns: int) -> Row:
    """Measures both forms in turn, whether or not the engine would choose the second."""
    layer = read_layer(text)
    plan = choose_plan(layer) or Plan(layer.height, layer.width)
    model = make_convolution(layer)
    other = winograd.replace_convolutions(model, lambda given: plan)
    image = np.random.default_rng(1).standard_normal(
        (1, layer.inputs, layer.height, layer.width), np.float32
    )
    runs = [
        _open(model, {"x": image}, threads),
        _open(other.model, {"x": image, **other.factors}, threads),
    ]
    # Memory is planned in the first runs.
    direct, fewer = ([run() for _ in range(3)][-1] for run in runs)
    slow, fast = time_in_turn(runs, 0.0, turns)
    return Row(
        text,
        plan,
        choose_plan(layer) is not None,
        slow.wall_spread,
        fast.wall_spread,
        ratios(slow.walls, fast.walls),
        layer.products / estimate(layer, plan),
        float(np.abs(direct - fewer).max() / np.abs(direct).max()),
    )


def read_row(stored: dict[str, Any]) -> Row:
    """Returns the row that was stored as JSON."""
    spreads = {name: Spread(**stored[name]) for name in ("direct_ms", "winograd_ms", "gain")}
    return Row(**{**stored, **spreads, "plan": Plan(**stored["plan"])})


def _open(
    model: onnx.ModelProto, inputs: dict[str, npt.NDArray[np.float32]], threads: int
) -> Callable[[], npt.NDArray[np.float32]]:
    session = open_on_cpu(model, threads, session_options(Acceleration(), 1, threads))
    return lambda: np.asarray(session.run(None, inputs)[0], np.float32)


def main(
    layers: Annotated[str, typer.Option(help="Layers, comma-separated.")] = ",".join(LAYERS),
    turns: Annotated[int, typer.Option(min=1, help="Runs of each form.")] = 7,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 uses all cores.")] = 0,
    results: ResultsFolder = RESULTS,
) -> None:
    """Prints a row for each layer."""
    machine = read_machine()
    typer.echo("\n".join(HEAD))
    rows = []
    for text in layers.split(","):
        rows.append(measure(text.strip(), threads or len(os.sched_getaffinity(0)), turns))
        typer.echo(rows[-1].line())
    write_result("winograd", {"rows": rows}, machine, results)


if __name__ == "__main__":
    typer.run(main)
