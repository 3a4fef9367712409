"""What int8 brings on the CPU: a network in float32, plain and rewritten, and in int8, in turn.

``python -m benchmarks.quantised --photos FOLDER [--network NAME] [--size HEIGHTxWIDTH]``. The
weights are random: they set the labels, not the speed; the photos set the ranges. CPU time of one
thread, so that other work on the machine disturbs little; the least of the runs counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import ModelProto

from benchmarks.parity import parse_size
from benchmarks.plain_graph import plain_model
from benchmarks.timing import time_in_turn
from export.passes.build import build_model
from export.passes.onnx_graph import name_nodes
from export.precision.images import PreparedImages, calibration_source
from export.precision.quantise import Recipe, calibrate, has_vnni, quantise
from export.symbols.find import PUBLISHED
from export.symbols.graph import Graph, read_symbol
from export.symbols.initial import random_params
from export.symbols.shapes import retarget
from serving.engines.graph import cut_graph
from serving.imaging.geometry import Size

MASK, LOGITS = "mask", "logits"


def session(model: ModelProto, output: str) -> onnxruntime.InferenceSession:
    """The graph, cut to one output, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = cut_graph(model, output).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def graphs(
    network: Graph, size: tuple[int, int], photos: Path
) -> dict[tuple[str, str], ModelProto]:
    """What is compared, by its description and the output that it is cut to; the first is plain."""
    symbol = retarget(network, *size)
    weights = random_params(symbol, *size)
    plain = plain_model(symbol, weights, *size)
    single = build_model(symbol, weights, *size)
    name_nodes(single)
    images = PreparedImages(calibration_source(photos, None, None), Size(*size))
    ranges = calibrate(single, images, "minmax")
    int8 = quantise(single, ranges, Recipe())
    first = quantise(single, ranges, Recipe(first_float=True))
    return {
        ("plain float32", MASK): plain,
        ("float32", MASK): single,
        ("float32", LOGITS): single,
        ("int8, first layers in float", MASK): first,
        ("int8, first layers in float", LOGITS): first,
        ("int8", MASK): int8,
        ("int8", LOGITS): int8,
    }


def main() -> None:
    """Prints the table of docs/precision.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantised")
    parser.add_argument("--photos", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--network", default="icnet_resnet50_citys", help="published (export/symbols)"
    )
    parser.add_argument("--size", type=parse_size, default=(1024, 2048), metavar="HEIGHTxWIDTH")
    parser.add_argument("--seconds", type=float, default=30.0, help="all runs together, at least")
    options = parser.parse_args()
    symbol = read_symbol(PUBLISHED / f"{options.network}.json.gz")
    compared = graphs(symbol, options.size, options.photos)
    image = np.random.default_rng(0).integers(0, 256, (1, *options.size, 3), dtype=np.uint8)
    runs = []
    for (_, output), model in compared.items():
        one = session(model, output)
        runs.append(lambda one=one: one.run(None, {"image": image}))
    times = [turns.cpu_ms(0) for turns in time_in_turn(runs, options.seconds)]
    size = f"{options.size[0]}x{options.size[1]}"
    print(f"{options.network} {size}, {'with' if has_vnni() else 'without'} VNNI,"
          f" ONNX Runtime {onnxruntime.__version__}")  # fmt: skip
    print("| graph | output | CPU time | of plain float32 | of float32 |\n|---|---|---|---|---|")
    for (title, output), took in zip(compared, times, strict=True):
        same = times[list(compared).index(("float32", output))]
        print(f"| {title} | `{output}` | {took:.0f} ms | {took / times[0]:.2f} |"
              f" {took / same:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
