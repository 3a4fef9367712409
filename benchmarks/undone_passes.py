"""Graphs as an obvious export writes them: what ``export`` did is undone in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper

from export.lowering.convert import DATA
from export.passes.contract import IMAGE
from export.passes.onnx_graph import OnnxGraph
from export.symbols.networks import IMAGENET


def normalise_apart(model: ModelProto) -> None:
    """Undoes ``fold_normalisation`` in place, the way data loaders normalise: floats in NHWC, white
    to 1, less the mean, over the deviation, then NCHW."""
    graph = OnnxGraph(model)
    scale = 255 * np.asarray(IMAGENET.std, np.float32)
    for node in list(model.graph.node):
        if node.op_type == "Conv" and _reads_image(graph, node.input[0]):
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


def _reads_image(graph: OnnxGraph, tensor: str) -> bool:
    """True for the image itself and its resizes."""
    producer = graph.producer(tensor)
    if producer is not None and producer.op_type == "Resize":
        return _reads_image(graph, producer.input[0])
    return tensor == DATA


def average_by_bins(model: ModelProto) -> int:
    """Puts a Slice and a ReduceMean a bin, and their concatenation, in place of each pooling that
    ``export.lowering.pooling`` wrote as two matrix products. Returns how many there were."""
    graph = OnnxGraph(model)
    found = [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1].endswith("_pooled_columns")
    ]
    for last in found:
        first = graph.producer(last.input[1])
        assert first is not None, "the product over the columns"
        rows, columns = graph.constant(last.input[0]), graph.constant(first.input[1])
        assert rows is not None, "its constant matrix"
        assert columns is not None, "its constant matrix"
        nodes = _bins(graph, first.input[0], last.output[0], _windows(rows), _windows(columns.T))
        graph.insert_after(last, nodes)
        graph.remove(last)
        graph.remove(first)
    graph.drop_dead()
    return len(found)


def _windows(matrix: npt.NDArray[np.float32]) -> list[tuple[int, int]]:
    """First and last position + 1 of each row of an averaging matrix."""
    return [(int(used[0]), int(used[-1]) + 1) for used in map(np.flatnonzero, matrix)]


def _bins(
    graph: OnnxGraph,
    source: str,
    result: str,
    rows: Sequence[tuple[int, int]],
    columns: Sequence[tuple[int, int]],
) -> list[NodeProto]:
    graph.set_constant("bin_axes", np.array([2, 3], np.int64))
    nodes, lines = [], []
    for i, (top, bottom) in enumerate(rows):
        means = []
        for j, (left, right) in enumerate(columns):
            name = f"{result}_bin_{i}_{j}"
            graph.set_constant(f"{name}_start", np.array([top, left], np.int64))
            graph.set_constant(f"{name}_end", np.array([bottom, right], np.int64))
            inputs = [source, f"{name}_start", f"{name}_end", "bin_axes"]
            nodes.append(helper.make_node("Slice", inputs, [f"{name}_values"]))
            mean = partial(helper.make_node, "ReduceMean", axes=[2, 3], keepdims=1)
            nodes.append(mean([f"{name}_values"], [name]))
            means.append(name)
        lines.append(f"{result}_bins_{i}")
        nodes.append(helper.make_node("Concat", means, [lines[-1]], axis=3))
    nodes.append(helper.make_node("Concat", lines, [result], axis=2))
    return nodes
