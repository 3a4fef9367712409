"""The first layers in 8 bits: they read the image's own bytes, four columns at once.

A byte is already a quantised value of scale 1, so nothing is lost in front of the first layer, and
nothing converts to float there: no cast, no subtraction, no transposition of floats. The mean, one
number a channel, becomes one zero point for all three and a bias of the layer. Inside the image
that is exact; what a convolution pads with is gray, not the mean's own tint: at most 11 of 255 away
for ImageNet's mean. Resizes of the image give bytes too. ONNX Runtime's CPU provider cuts their
fractions off (1.19 and 1.31 do), half a level on average, which the bias makes up for.

ONNX Runtime's 8-bit convolutions on CPUs read their input in place, four channels at a time. Three
channels do not fit that: it copies every window of an image first, three bytes a tap, and its first
layer takes as long as one of ten times the products. Four pixels of a row are twelve channels,
which fit. In the image's own layout, channels last, four columns of three channels *are* one of
twelve: nothing moves, before the layer or behind it, whose filters are written once for each result
of a group. The zeros between them are up to four times the products, and cost less than the copies
did. The integers that are added stay the same, so the results do too, to the bit. Source of the
condition: ``MlasConvSymPackWSize`` in onnxruntime/core/mlas/lib/convsym.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from export.passes.onnx_graph import OnnxGraph, Shapes, infer_shapes, integers, make_node, texts

# What a resize of bytes loses on average.
_CUT_OFF = 0.5
# Further from the mean than so many levels, padding would be another colour.
_MAX_TINT = 32


@dataclass(frozen=True)
class Bytes:
    """A tensor of the image's bytes, as read by first layers.

    Attributes:
        source: uint8 [N, 3, h, w].
        centred: float32, ``source`` less the zero point.
    """

    source: str
    centred: str


@dataclass(frozen=True)
class ByteImage:
    """The result of ``centre_bytes``: the image's zero point, and the tensors it is read as."""

    zero_point: int
    tensors: tuple[Bytes, ...]

    @property
    def ranges(self) -> Mapping[str, tuple[float, float]]:
        """Returns the range of each centred tensor: that for which a quantised value is the byte
        itself."""
        return {t.centred: (-self.zero_point, 255 - self.zero_point) for t in self.tensors}


def centre_bytes(model: ModelProto) -> ByteImage | None:
    """Rewrites in place a graph of ``fold_normalisation`` so that its first convolutions read bytes
    less one whole number, and resizes of the image work on bytes.

    None, and nothing changed, where anything but convolutions and such resizes reads the image, or
    no gray is near the mean.
    """
    graph = OnnxGraph(model)
    centre = next((node for node in graph.nodes("Sub") if node.name == "centre"), None)
    mean = None if centre is None else graph.constant(centre.input[1])
    cast = None if centre is None else graph.producer(centre.input[0])
    if centre is None or mean is None or cast is None or cast.op_type != "Cast":
        return None
    plain, resizes = [], []
    for node in graph.consumers(centre.output[0]):
        if _reads(graph, node, centre.output[0]):
            plain.append(node)
        elif node.op_type == "Resize" and all(
            _reads(graph, reader, node.output[0]) for reader in graph.consumers(node.output[0])
        ):
            resizes.append(node)
        else:
            return None
    zero_point = int(np.clip(np.rint(mean.mean()), 0, 255))
    shift = zero_point - mean.reshape(-1).astype(np.float64)
    if np.abs(shift).max() > _MAX_TINT:
        return None
    tensors = []
    if plain:
        tensors.append(Bytes(cast.input[0], centre.output[0]))
        for conv in plain:
            _add_to_bias(graph, conv, shift)
    graph.set_constant(centre.input[1], np.array(zero_point, np.float32))
    for resize in resizes:
        readers = graph.consumers(resize.output[0])
        tensors.append(_resize_bytes(graph, cast, centre, resize))
        for conv in readers:
            _add_to_bias(graph, conv, shift + _CUT_OFF)
    graph.drop_dead()
    return ByteImage(zero_point, tuple(tensors))


def read_bytes(model: ModelProto, image: ByteImage) -> None:
    """Takes the conversion to float and back out of the quantised graph, in place."""
    graph = OnnxGraph(model)
    for tensor in image.tensors:
        for node in graph.consumers(tensor.centred):
            scale, zero_point = (graph.constant(name) for name in node.input[1:])
            assert scale == 1, "the range makes the scale"
            assert zero_point == image.zero_point, "the range makes the zero point"
            for reader in graph.consumers(node.output[0]):
                graph.set_input(reader, 0, tensor.source)
    graph.drop_dead()


def _reads(graph: OnnxGraph, node: NodeProto, tensor: str) -> bool:
    """Returns True for a convolution of the tensor's three channels by constants."""
    weight = graph.constant(node.input[1]) if node.op_type == "Conv" else None
    return (
        weight is not None
        and weight.shape[1] == 3
        and node.input[0] == tensor
        and all(graph.constant(name) is not None for name in node.input[2:] if name)
        and not graph.is_output(tensor)
    )


def _add_to_bias(graph: OnnxGraph, conv: NodeProto, shift: NDArray[np.float64]) -> None:
    """Adds the convolution of an image that is ``shift`` (float64 [3]) everywhere."""
    weight = graph.constant(conv.input[1])
    assert weight is not None, "_reads has checked it"
    bias = graph.constant(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else None
    added = np.einsum("fcyx,c->f", weight.astype(np.float64), shift)
    name = f"{conv.name}_bias_of_bytes"
    graph.set_constant(name, (added if bias is None else bias + added).astype(np.float32))
    graph.set_inputs(conv, [*conv.input[:2], name])


def _resize_bytes(graph: OnnxGraph, cast: NodeProto, centre: NodeProto, resize: NodeProto) -> Bytes:
    """Moves a resize of the centred image in front of its conversion to float."""
    name, result = resize.name, resize.output[0]
    small, floats = f"{name}_bytes", f"{name}_float"
    graph.set_input(resize, 0, cast.input[0])
    graph.set_output(resize, 0, small)
    centred = helper.make_node("Sub", [floats, centre.input[1]], [result], name=f"{name}_centred")
    cast_back = make_node("Cast", [small], floats, to=TensorProto.FLOAT)
    graph.insert_after(resize, [cast_back, centred])
    return Bytes(small, result)


Array = NDArray[Any]

COLUMNS = 4
CHANNELS = 3


@dataclass(frozen=True)
class Packing:
    """The placing of filters of ``taps`` columns, moved by ``stride``, on groups of columns.

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

    Layers of widths that are not a multiple of four, of strides that do not divide it, and dilated
    ones stay as they are.
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
