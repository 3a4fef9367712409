"""Measures what int8 brings on the CPU: float32, plain and rewritten, and int8 take turns.

``python -m benchmarks.studies.quantised --photos FOLDER [--network NAME] [--size HEIGHTxWIDTH]``.
The weights are random: they set the labels, not the speed; the photos set the ranges. CPU time of
one thread, so that other work on the machine disturbs little; the shortest run counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import ModelProto

from benchmarks.engines.graphs import plain_model
from benchmarks.engines.onnxruntime import open_on_cpu
from benchmarks.studies.parity import parse_size
from benchmarks.timing import time_in_turn
from export.passes.build import build_model
from export.passes.onnx_graph import name_nodes
from export.precision.images import PreparedImages, calibration_source
from export.precision.quantise import Recipe, calibrate, has_vnni, quantise
from export.symbols.find import PUBLISHED
from export.symbols.graph import Graph, read_symbol
from export.symbols.params import random_params
from export.symbols.sizes import retarget
from serving.engines.graph import cut_graph
from serving.imaging.geometry import Size

MASK, LOGITS = "mask", "logits"


def graphs(
    network: Graph, size: tuple[int, int], photos: Path
) -> dict[tuple[str, str], ModelProto]:
    """Returns the compared graphs by description and output; the plain one comes first."""
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.quantised")
    parser.add_argument("--photos", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--network", default="icnet_resnet50_citys", help="a published network (export/symbols)"
    )
    parser.add_argument("--size", type=parse_size, default=(1024, 2048), metavar="HEIGHTxWIDTH")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="least time of all runs together"
    )
    options = parser.parse_args()
    symbol = read_symbol(PUBLISHED / f"{options.network}.json.gz")
    compared = graphs(symbol, options.size, options.photos)
    image = np.random.default_rng(0).integers(0, 256, (1, *options.size, 3), dtype=np.uint8)
    runs = []
    for (_, output), model in compared.items():
        one = open_on_cpu(cut_graph(model, output), threads=1)
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
