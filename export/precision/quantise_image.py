"""The first layers in 8 bits: they read the image's own bytes.

A byte is already a quantised value of scale 1, so nothing is lost in front of the first layer, and
nothing converts to float there: no cast, no subtraction, no transposition of floats. The mean, one
number a channel, becomes one zero point for all three and a bias of the layer. Inside of the image
that is exact; what a convolution pads with is gray, not the mean's own tint: at most 11 of 255 away
for ImageNet's mean. Resizes of the image give bytes too. ONNX Runtime's CPU provider cuts their
fractions off (1.19 and 1.31 do), half a level on average, which the bias gives back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from export.passes.onnx_graph import OnnxGraph, make_node

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
    """What ``centre_bytes`` made of the image: the zero point, and the tensors it is read as."""

    zero_point: int
    tensors: tuple[Bytes, ...]

    @property
    def ranges(self) -> Mapping[str, tuple[float, float]]:
        """The range of each centred tensor: that for which a quantised value is the byte itself."""
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
    """True for a convolution of the tensor's three channels by constants."""
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
    assert weight is not None, "_reads asked for it"
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
