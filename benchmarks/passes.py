"""What a graph rewrite brings: the same network with and without it, in turn, on ONNX Runtime.

``python -m benchmarks.passes [--size HEIGHTxWIDTH] [--runs N]``. CPU seconds of one thread, so that
other work on the machine disturbs little; the least of the runs counts. Graphs are cut to
``logits``, as the embedded engine does.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper

from benchmarks.parity import NETWORKS, generate, parse_size
from export.build import build_model
from export.convert import DATA
from export.onnx_graph import OnnxGraph
from export.passes.fold_normalisation import IMAGE
from export.pixels import IMAGENET
from export.random_params import random_params
from export.retarget import retarget
from export.symbol import Graph, read_symbol
from export.symbol_lookup import PUBLISHED


@dataclass(frozen=True)
class Comparison:
    """A rewrite, and the network to measure it on: of ``benchmarks.parity``, or published.

    ``off`` are the rewrites to leave out on both sides, which would do part of its work.
    """

    rewrite: str
    network: str
    off: tuple[str, ...] = ()


NORMALISATION = "fold_normalisation"
COMPARISONS = (
    Comparison("fold_batch_norm", "fcn_resnet50"),
    Comparison("image_pooling_bias", "deeplabv3_resnet50", ("factor_pyramid",)),
    Comparison("image_pooling_bias", "deeplabv3plus_xception65_os16", ("factor_pyramid",)),
    Comparison("factor_pyramid", "icnet_resnet50"),
    Comparison("factor_pyramid", "pspnet_resnet50"),
    Comparison("commute_resize", "icnet_resnet50_citys"),
    Comparison(NORMALISATION, "icnet_resnet50_citys"),
)


def session(
    graph: Graph, size: tuple[int, int], without: tuple[str, ...]
) -> onnxruntime.InferenceSession:
    """The network with random weights on one thread."""
    model = build_model(
        graph, random_params(graph, *size), *size, heads=["logits"], without=without
    )
    if NORMALISATION in without:
        normalise_apart(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def normalise_apart(model: ModelProto) -> None:
    """Undoes ``fold_normalisation`` in place, the way data loaders normalise: floats in NHWC, white
    to 1, less the mean, over the deviation, then NCHW."""
    graph = OnnxGraph(model)
    scale = 255 * np.asarray(IMAGENET.std, np.float32)
    for node in list(model.graph.node):
        if node.op_type == "Conv" and reads_image(graph, node.input[0]):
            weight = graph.constant(node.input[1])
            assert weight is not None, "the pass folded the scale into it"
            graph.set_constant(node.input[1], weight * scale.reshape(1, 3, 1, 1))
    for name in ("image_nchw", "image_float", "centre"):
        graph.remove(next(node for node in model.graph.node if node.name == name))
    for name, values in (("white", 255.0), ("mean", IMAGENET.mean), ("std", IMAGENET.std)):
        graph.set_constant(f"loader_{name}", np.array(values, np.float32))
    cast = helper.make_node("Cast", [IMAGE], ["loader_float"], to=TensorProto.FLOAT)
    steps = [
        ("Div", "float", "white", "unit"),
        ("Sub", "unit", "mean", "centred"),
        ("Div", "centred", "std", "scaled"),
    ]
    nodes = [
        helper.make_node(op, [f"loader_{a}", f"loader_{b}"], [f"loader_{out}"])
        for op, a, b, out in steps
    ]
    move = helper.make_node("Transpose", ["loader_scaled"], [DATA], perm=[0, 3, 1, 2])
    graph.insert_first([cast, *nodes, move])
    graph.drop_dead()


def reads_image(graph: OnnxGraph, tensor: str) -> bool:
    """True for the image itself and its resizes."""
    producer = graph.producer(tensor)
    if producer is not None and producer.op_type == "Resize":
        return reads_image(graph, producer.input[0])
    return tensor == DATA


def measure(comparison: Comparison, size: tuple[int, int], runs: int) -> str:
    """One line of the table in docs/export.md."""
    published = PUBLISHED / f"{comparison.network}.json.gz"
    if published.is_file():
        graph = retarget(read_symbol(published), *size)
    else:
        graph = generate(NETWORKS[comparison.network], *size)
    off = comparison.off
    sessions = [session(graph, size, without) for without in (off, (*off, comparison.rewrite))]
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    seconds: list[list[float]] = [[], []]
    results = [s.run(None, {"image": image})[0] for s in sessions]
    for _ in range(runs):
        for number, one in enumerate(sessions):
            start = time.process_time()
            one.run(None, {"image": image})
            seconds[number].append(time.process_time() - start)
    with_it, without_it = (min(times) for times in seconds)
    difference = np.abs(results[0] - results[1]).max() / np.abs(results[1]).max()
    return (
        f"| `{comparison.rewrite}` | {comparison.network} | {size[0]}x{size[1]} |"
        f" {without_it * 1000:.0f} ms | {with_it * 1000:.0f} ms | {with_it / without_it:.2f} |"
        f" {difference:.0e} |"
    )


def main() -> None:
    """Prints a line a comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.passes")
    parser.add_argument("--size", type=parse_size, default=(352, 480), metavar="HEIGHTxWIDTH")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rewrite", help="only this one")
    options = parser.parse_args()
    for comparison in COMPARISONS:
        if options.rewrite not in (None, comparison.rewrite):
            continue
        print(measure(comparison, options.size, options.runs), flush=True)


if __name__ == "__main__":
    main()
