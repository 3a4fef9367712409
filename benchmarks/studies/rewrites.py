"""Builds one network with and without a rewrite of ``export/passes``: two ways to the same values.

``benchmarks.studies.passes`` measures them, on one thread; graphs are cut to what is read of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper

from benchmarks.engines.onnxruntime import open_on_cpu
from export.lowering.convert import DATA, OPSET, convert
from export.passes.build import REWRITES, build_model, cut_at_logits, prune_heads
from export.passes.contract import IMAGE, LOGITS, MASK, fold_normalisation
from export.passes.onnx_graph import OnnxGraph
from export.symbols.graph import Entry, Graph
from export.symbols.networks import IMAGENET
from export.symbols.params import Parameters
from serving.engines.graph import cut_graph
from serving.imaging.geometry import Size
from serving.imaging.restore import model_labels

Values: TypeAlias = npt.NDArray[np.generic]
Run: TypeAlias = Callable[[], Values]
FULL = "logits_full_size"


@dataclass(frozen=True)
class Subject:
    """A network of one size (height, width), its parameters, and what it is shown.

    Attributes:
        graph: built for that size, with all its heads.
        image: uint8 [height, width, 3].
        off: rewrites to leave out on both sides, which would do part of the measured one's work.
    """

    graph: Graph
    parameters: Parameters
    size: tuple[int, int]
    image: npt.NDArray[np.uint8]
    off: tuple[str, ...] = ()

    def build(
        self,
        heads: Sequence[str] = (LOGITS,),
        without: Collection[str] = (),
        opset: int | None = None,
    ) -> ModelProto:
        """Returns the serving graph, without the rewrites ``off`` and ``without``."""
        left_out = (*self.off, *without)
        return build_model(
            self.graph, self.parameters, *self.size, heads=heads, without=left_out, opset=opset
        )

    def run(self, model: ModelProto) -> Run:
        """Returns a run that computes the model's first output, [1, ...], for the image."""
        session = open_on_cpu(model, threads=1)
        feed = {IMAGE: self.image[None]}

        def first() -> Values:
            values: Values = session.run(None, feed)[0]
            return values

        return first


@dataclass(frozen=True)
class Pair:
    """Two runs that give the same values."""

    without: Run
    with_it: Run


def make_pair(rewrite: str, subject: Subject) -> Pair:
    """Returns both ways of a rewrite: a pass of ``export.passes.build``, or one of ``OTHERS``."""
    if rewrite in OTHERS:
        return OTHERS[rewrite](subject)
    return Pair(subject.run(subject.build(without=(rewrite,))), subject.run(subject.build()))


def _prune_heads(subject: Subject) -> Pair:
    """Compares all heads with the prediction's logits alone."""
    main = cut_at_logits(prune_heads(subject.graph), *subject.size)
    with_it = _rewritten(subject, main.graph)
    logits = _entry_named(subject.graph, main.graph.nodes[main.graph.heads[0].node].name)
    every = subject.graph.pruned([logits, *subject.graph.heads[1:]])
    return Pair(subject.run(_rewritten(subject, every)), subject.run(with_it))


def _rewritten(subject: Subject, graph: Graph) -> ModelProto:
    """Returns what ``build_model`` makes of a graph before it adds outputs."""
    model = convert(graph, subject.parameters, *subject.size)
    for rewrite in REWRITES.values():
        rewrite(model)
    fold_normalisation(model)
    return model


def _entry_named(graph: Graph, name: str) -> Entry:
    return Entry(next(index for index, node in graph.operators() if node.name == name))


def _cut_at_logits(subject: Subject) -> Pair:
    """Compares labels from logits at the image's size with those restored as served."""
    small = subject.run(subject.build())
    return Pair(
        _labels_outside(subject),
        lambda: model_labels(small()[0].astype(np.float32, copy=False), Size(*subject.size)),
    )


def _mask_head(subject: Subject) -> Pair:
    """Compares labels from logits at the image's size with those of the graph itself."""
    inside = subject.run(subject.build((MASK,)))
    return Pair(_labels_outside(subject), lambda: inside()[0])


def _labels_outside(subject: Subject) -> Run:
    """Returns a run of NumPy's argmax over the logits that the graph resized to the image."""
    model = subject.build((MASK,))
    model.graph.output.append(helper.make_tensor_value_info(FULL, TensorProto.FLOAT, None))
    full = subject.run(cut_graph(model, FULL))
    return lambda: full()[0].argmax(axis=0).astype(np.uint8)


def _sample_deformable(subject: Subject) -> Pair:
    return Pair(subject.run(subject.build()), subject.run(subject.build(opset=OPSET)))


def _normalisation(subject: Subject) -> Pair:
    apart = subject.build()
    normalise_apart(apart)
    return Pair(subject.run(apart), subject.run(subject.build()))


def _adaptive_pooling(subject: Subject) -> Pair:
    binned = subject.build()
    average_by_bins(binned)
    return Pair(subject.run(binned), subject.run(subject.build()))


ADAPTIVE = "adaptive pooling as matrix products"
OTHERS: dict[str, Callable[[Subject], Pair]] = {
    "prune_heads": _prune_heads,
    "cut_at_logits": _cut_at_logits,
    "mask_head": _mask_head,
    "sample_deformable": _sample_deformable,
    "fold_normalisation": _normalisation,
    ADAPTIVE: _adaptive_pooling,
}


def normalise_apart(model: ModelProto) -> None:
    """Undoes ``fold_normalisation`` in place, the way data loaders normalise.

    Floats in NHWC, white to 1, minus the mean, over the deviation, then NCHW.
    """
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
    """Returns whether a tensor is the image itself or a resize of it."""
    producer = graph.producer(tensor)
    if producer is not None and producer.op_type == "Resize":
        return _reads_image(graph, producer.input[0])
    return tensor == DATA


def average_by_bins(model: ModelProto) -> int:
    """Replaces each pooling that ``export.lowering.pooling`` wrote as two matrix products.

    Each bin becomes a Slice and a ReduceMean, and they are concatenated. Returns how many
    poolings there were.
    """
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
    """Returns first and last position + 1 of each row of an averaging matrix."""
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
