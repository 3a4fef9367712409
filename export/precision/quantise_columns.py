"""First layers in 8 bits that take four columns of the image at once.

ONNX Runtime's 8-bit convolutions on CPUs read their input in place, four channels at a time. Three
channels do not fit that: it copies every window of an image first, three bytes a tap, and its first
layer takes as long as one of ten times the products. Four pixels of a row are twelve channels,
which fit. In the image's own layout, channels last, four columns of three channels *are* one of
twelve: nothing moves, before the layer or behind it, whose filters are written once for each result
of a group. The zeros between them are up to four times the products, and cost less than the copies
did. The integers that are added stay the same, so the results do too, to the bit.

Source of the condition: ``MlasConvSymPackWSize`` in onnxruntime/core/mlas/lib/convsym.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from export.passes.onnx_graph import OnnxGraph, Shapes, infer_shapes, integers, texts
from export.precision.quantise_image import ByteImage

Array = NDArray[Any]

COLUMNS = 4
CHANNELS = 3


@dataclass(frozen=True)
class Packing:
    """How filters of ``taps`` columns, moved by ``stride``, lie on groups of columns.

    Attributes:
        results: of one group.
        first, last: groups that a group's results reach, relative to it.
    """

    taps: int
    stride: int
    pad: int

    @property
    def results(self) -> int:
        return COLUMNS // self.stride

    @property
    def first(self) -> int:
        return -self.pad // COLUMNS

    @property
    def last(self) -> int:
        return (self.stride * (self.results - 1) - self.pad + self.taps - 1) // COLUMNS

    def filters(self, weight: Array) -> Array:
        """Returns int8 ``[K, 3, h, taps]`` as ``[results * K, COLUMNS * 3, h, groups]``."""
        count, channels, height, taps = weight.shape
        groups = self.last - self.first + 1
        packed = np.zeros((self.results, count, COLUMNS, channels, height, groups), weight.dtype)
        for result in range(self.results):
            for tap in range(taps):
                group, column = divmod(self.stride * result - self.pad + tap, COLUMNS)
                packed[result, :, column, :, :, group - self.first] = weight[..., tap]
        return packed.reshape(self.results * count, COLUMNS * channels, height, groups)


def pack_columns(model: ModelProto, image: ByteImage) -> None:
    """Rewrites in place the convolutions of ``image`` in a quantised graph of ``read_bytes``.

    Left as they are: widths that are no multiple of four, strides that do not divide it, dilated
    layers.
    """
    graph = OnnxGraph(model)
    shapes = infer_shapes(model)
    for tensor in image.tensors:
        for bytes_read in graph.consumers(tensor.source):
            if bytes_read.op_type == "DequantizeLinear":
                for conv in graph.consumers(bytes_read.output[0]):
                    _pack(graph, shapes, bytes_read, conv)
    graph.drop_dead()


def _pack(graph: OnnxGraph, shapes: Shapes, bytes_read: NodeProto, conv: NodeProto) -> None:
    source, after = bytes_read.input[0], shapes.get(conv.output[0], ())
    weight, bias = (graph.producer(name) for name in conv.input[1:])
    quantised = graph.consumers(conv.output[0])
    filters_read = None if weight is None else graph.constant(weight.input[0])
    if weight is None or bias is None or filters_read is None or not after:
        return
    rows, taps = filters_read.shape[2:]
    packing = _read_packing(conv, taps, shapes.get(source, ()), after)
    if packing is None:
        return
    if [node.op_type for node in quantised] != ["QuantizeLinear"]:
        return
    top, _, bottom, _ = integers(conv, "pads", (0,) * 4)
    down, _ = integers(conv, "strides", (1, 1))
    _, _, height, width = shapes[source]
    build = _Nodes(graph, f"{conv.name}_packed")
    groups = build.fold(source, (-1, height, width // COLUMNS, COLUMNS * CHANNELS))
    values = build.add("DequantizeLinear", groups, *bytes_read.input[1:])
    filters = build.repeat(weight, packing.results, packing.filters)
    biases = build.repeat(bias, packing.results)
    result = build.add(
        "Conv", values, filters, biases,
        kernel_shape=[rows, packing.last - packing.first + 1],
        strides=[down, 1],
        pads=[top, -packing.first, bottom, packing.last],
    )  # fmt: skip
    result = build.add("QuantizeLinear", result, *quantised[0].input[1:])
    build.fold(result, (-1, after[2], after[3], after[1]), quantised[0].output[0])
    graph.insert_after(quantised[0], build.nodes)
    graph.remove(quantised[0])


def _read_packing(
    conv: NodeProto, taps: int, before: tuple[int, ...], after: tuple[int, ...]
) -> Packing | None:
    _, stride = integers(conv, "strides", (1, 1))
    _, left, _, _ = integers(conv, "pads", (0,) * 4)
    packing = Packing(taps, stride, left)
    fits = (
        COLUMNS % stride == 0
        and len(before) == 4
        and before[3] % COLUMNS == 0
        and after[3] == before[3] // stride
        and integers(conv, "dilations", (1, 1)) == (1, 1)
        and integers(conv, "group", (1,)) == (1,)
        and texts(conv).get("auto_pad", "NOTSET") == "NOTSET"
    )
    return packing if fits else None


class _Nodes:
    """New nodes, each with a name of its own."""

    def __init__(self, graph: OnnxGraph, stem: str) -> None:
        self._graph, self._stem = graph, stem
        self.nodes: list[NodeProto] = []

    def add(self, kind: str, *inputs: str, result: str = "", **attributes: object) -> str:
        name = f"{self._stem}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [result or name], name=name, **attributes))
        return result or name

    def fold(self, source: str, shape: tuple[int, ...], result: str = "") -> str:
        """Folds NCHW to NCHW by another shape of NHWC; ONNX Runtime's transposes cancel."""
        target = f"{self._stem}_{len(self.nodes)}_shape"
        self._graph.set_constant(target, np.array(shape, np.int64))
        last = self.add("Transpose", source, perm=[0, 2, 3, 1])
        folded = self.add("Reshape", last, target)
        return self.add("Transpose", folded, result=result, perm=[0, 3, 1, 2])

    def repeat(
        self, node: NodeProto, times: int, change: Callable[[Array], Array] | None = None
    ) -> str:
        """Returns a ``DequantizeLinear`` of constants a channel, for ``times`` as many channels."""
        inputs = []
        for place, name in enumerate(node.input):
            values = self._graph.constant(name)
            assert values is not None, "quantised weights are constants"
            packed = f"{name}_packed"
            repeated = change(values) if change and place == 0 else np.tile(values, times)
            self._graph.set_constant(packed, repeated)
            inputs.append(packed)
        return self.add("DequantizeLinear", *inputs, axis=0)
