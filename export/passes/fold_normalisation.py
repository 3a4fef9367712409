"""Moves the image normalisation into the graph: the input becomes uint8 NHWC RGB.

``(x / 255 - mean) / std`` is ``(x - 255 mean) / (255 std)``: the subtraction stays an operator,
in front of every resize and padding, so that zero padding keeps its meaning; the division is
folded into the weights of the first convolutions. Exact up to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from export.lowering.convert import BATCH, DATA
from export.passes.onnx_graph import OnnxGraph
from export.symbols.normalisation import IMAGENET_MEAN, IMAGENET_STD

IMAGE = "image"
# Linear in each channel, so a factor passes through them.
_TRANSPARENT = {"Resize", "Identity", "AveragePool", "GlobalAveragePool"}


def fold_normalisation(
    model: ModelProto,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    *,
    bgr: bool = False,
) -> int:
    """Edits in place a model with the float32 input ``data`` [N, 3, H, W].

    Afterwards its input is ``image`` uint8 [N, H, W, 3] RGB. ``mean`` and ``std`` are of RGB values
    from 0 to 1; ``bgr`` says that ``data`` has blue first. Returns the number of convolutions that
    took the scale; where something else reads the image too it is 0 and the scale is an operator.
    """
    graph = OnnxGraph(model)
    data = graph.graph.input[0]
    _, channels, height, width = (d.dim_value for d in data.type.tensor_type.shape.dim)
    scale = 1 / (255 * np.asarray(std, np.float64))
    convolutions = _first_convolutions(graph)
    nodes = [
        # Bytes are transposed before they become floats: a quarter of the memory traffic.
        helper.make_node(
            "Transpose", [IMAGE], ["image_nchw"], name="image_nchw", perm=[0, 3, 1, 2]
        ),
        helper.make_node(
            "Cast", ["image_nchw"], ["image_float"], name="image_float", to=TensorProto.FLOAT
        ),
    ]
    shift = (255 * np.asarray(mean, np.float64)).astype(np.float32).reshape(channels, 1, 1)
    graph.set_constant("image_mean", shift)
    centred = DATA if convolutions else "image_centred"
    nodes.append(helper.make_node("Sub", ["image_float", "image_mean"], [centred], name="centre"))
    if not convolutions:
        graph.set_constant("image_scale", scale.astype(np.float32).reshape(channels, 1, 1))
        scaled_name = "image_normalised" if bgr else DATA
        nodes.append(
            helper.make_node("Mul", [centred, "image_scale"], [scaled_name], name="normalise")
        )
        if bgr:
            graph.set_constant("image_channels", np.array([2, 1, 0], np.int64))
            nodes.append(
                helper.make_node(
                    "Gather", [scaled_name, "image_channels"], [DATA], name="reorder", axis=1
                )
            )
    for name in dict.fromkeys(conv.input[1] for conv in convolutions):
        weight = graph.constant(name)
        assert weight is not None, "_first_convolutions returns those with constant weights"
        if bgr:
            weight = weight[:, ::-1]
        scaled = weight.astype(np.float64) * scale.reshape(1, channels, 1, 1)
        graph.set_constant(name, scaled.astype(np.float32))
    graph.insert_first(nodes)
    shape = [BATCH, height, width, channels]
    data.CopyFrom(helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, shape))
    return len(convolutions)


def _first_convolutions(graph: OnnxGraph) -> list[NodeProto]:
    """Returns the convolutions that read the image, directly or resized; none where others do
    too."""
    found: list[NodeProto] = []
    tensors = [DATA]
    while tensors:
        tensor = tensors.pop()
        if graph.is_output(tensor):
            return []
        for node in graph.consumers(tensor):
            if node.op_type in _TRANSPARENT and node.input[0] == tensor:
                tensors.append(node.output[0])
            elif node.op_type == "Conv" and node.input[0] == tensor:
                found.append(node)
            else:
                return []
    for conv in found:
        weight = graph.constant(conv.input[1])
        others = [n for n in graph.consumers(conv.input[1]) if n not in found]
        # A grouped convolution has no axis of all input channels to scale.
        if weight is None or weight.shape[1] != len(IMAGENET_MEAN) or others:
            return []
    return found
