"""Both ends of a graph of the contract: the image's bytes in, mask, confidence and logits out.

``fold_normalisation`` makes the input ``image`` uint8 NHWC RGB. ``(x / 255 - mean) / std`` is
``(x - 255 mean) / (255 std)``: the subtraction stays an operator, in front of every resize and
padding, so that zero padding keeps its meaning; the division is folded into the weights of the
first convolutions. Exact up to float32 rounding.

``mask_head`` adds the outputs: ``logits`` at the head's resolution, ``mask`` and ``confidence`` at
the image's. ``mask`` is the argmax of the logits resized to the image with aligned corners, as the
networks are trained; of equal classes the lower id wins. ``confidence`` is the winner's softmax
times 255, rounded to even.

``graph_ends`` finds both ends again: lower precisions leave them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from export.errors import ExportError
from export.lowering.context import resize_nodes
from export.lowering.convert import BATCH, DATA
from export.passes.onnx_graph import OnnxGraph, make_node
from export.symbols.networks import IMAGENET, Pixels
from serving.palette import MAX_CLASSES, label_type

IMAGE = "image"
MASK, LOGITS, CONFIDENCE = "mask", "logits", "confidence"
HEADS = (MASK, LOGITS)
ALL_HEADS = (MASK, CONFIDENCE, LOGITS)
LAYERS = frozenset({"Conv", "ConvTranspose", "DeformConv", "MatMul", "Gemm"})
# Linear in each channel, so a factor passes through them.
_TRANSPARENT = {"Resize", "Identity", "AveragePool", "GlobalAveragePool"}


def fold_normalisation(model: ModelProto, pixels: Pixels = IMAGENET) -> int:
    """Edits in place a model with the float32 input ``data`` [N, 3, H, W], or [N, 1, H, W] in gray.

    Afterwards its input is ``image`` uint8 [N, H, W, 3] RGB (gray: [N, H, W, 1], with the first of
    each triple of ``pixels``). ``pixels`` is what ``data`` held.
    Returns the number of convolutions that took the scale; where something else reads the image
    too it is 0 and the scale is an operator.
    """
    graph = OnnxGraph(model)
    data = graph.graph.input[0]
    _, channels, height, width = (d.dim_value for d in data.type.tensor_type.shape.dim)
    scale = 1 / (255 * np.asarray(pixels.std[:channels], np.float64))
    bgr = pixels.bgr and channels == len(pixels.mean)
    convolutions = _first_convolutions(graph, channels)
    shift = (255 * np.asarray(pixels.mean[:channels], np.float64)).astype(np.float32)
    graph.set_constant("image_mean", shift.reshape(channels, 1, 1))
    centred = DATA if convolutions else "image_centred"
    nodes = [
        # Bytes are transposed before they become floats: a quarter of the memory traffic.
        make_node("Transpose", [IMAGE], "image_nchw", perm=[0, 3, 1, 2]),
        make_node("Cast", ["image_nchw"], "image_float", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["image_float", "image_mean"], [centred], name="centre"),
    ]
    if not convolutions:
        graph.set_constant("image_scale", scale.astype(np.float32).reshape(channels, 1, 1))
        scaled = "image_normalised" if bgr else DATA
        nodes.append(helper.make_node("Mul", [centred, "image_scale"], [scaled], name="normalise"))
        if bgr:
            graph.set_constant("image_channels", np.array([2, 1, 0], np.int64))
            inputs = [scaled, "image_channels"]
            nodes.append(helper.make_node("Gather", inputs, [DATA], name="reorder", axis=1))
    for name in dict.fromkeys(conv.input[1] for conv in convolutions):
        weight = graph.constant(name)
        assert weight is not None, "_first_convolutions returns those with constant weights"
        if bgr:
            weight = weight[:, ::-1]
        scaled_weight = weight.astype(np.float64) * scale.reshape(1, channels, 1, 1)
        graph.set_constant(name, scaled_weight.astype(np.float32))
    graph.insert_first(nodes)
    shape = [BATCH, height, width, channels]
    data.CopyFrom(helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, shape))
    return len(convolutions)


def _first_convolutions(graph: OnnxGraph, channels: int) -> list[NodeProto]:
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
        readers = graph.consumers(conv.input[1])
        others = any(all(reader is not own for own in found) for reader in readers)
        # A grouped convolution has no axis of all input channels to scale.
        if weight is None or weight.shape[1] != channels or others:
            return []
    return found


def check_heads(heads: Sequence[str], *, served: bool = True) -> None:
    """Raises ExportError for outputs that are not the contract's.

    With ``served`` also where no server could make labels of them.
    """
    if not heads or set(heads) - set(ALL_HEADS):
        raise ExportError(
            f"--head {','.join(heads)!r} is not valid: expected one or more of"
            f" {', '.join(ALL_HEADS)}"
        )
    if served and not {MASK, LOGITS} & set(heads):
        raise ExportError(
            f"--head {','.join(heads)!r} holds neither mask nor logits; a server needs one of them:"
            " add mask"
        )


def check_classes(classes: int, least: int = 1) -> None:
    """Raises ExportError where a label map cannot hold so many classes."""
    if not least <= classes <= MAX_CLASSES:
        raise ExportError(f"{classes} classes: expected {least} to {MAX_CLASSES}")


def mask_type(classes: int) -> int:
    """Returns ONNX's type of a label map of so many classes."""
    return int(helper.np_dtype_to_tensor_dtype(label_type(classes)))


def mask_head(model: ModelProto, height: int, width: int, heads: Sequence[str] = HEADS) -> None:
    """Edits in place a model whose first output is float32 logits [N, C, h, w].

    Afterwards its outputs are those of ``heads``: ``mask`` (with more than 255 classes uint16) and
    ``confidence`` uint8 [N, height, width], ``logits`` float32 [N, C, h, w]. Raises ExportError
    for other heads or too many classes.
    """
    graph = OnnxGraph(model)
    source = graph.graph.output[0]
    _, classes, *lengths = (d.dim_value for d in source.type.tensor_type.shape.dim)
    check_heads(heads, served=False)
    check_classes(classes)
    if graph.producer(source.name) is not None:
        graph.rename(source.name, LOGITS)
    full = LOGITS
    if MASK in heads or CONFIDENCE in heads:
        nodes, constants = resize_nodes(
            "logits_full_size", LOGITS, lengths, (height, width), aligned=True
        )
        full = "logits_full_size" if nodes else LOGITS
        graph.extend(nodes, constants)
    if MASK in heads:
        graph.append("ArgMax", [full], "labels", axis=1, keepdims=0)
        graph.append("Cast", ["labels"], MASK, to=mask_type(classes))
    if CONFIDENCE in heads:
        _add_confidence(graph, full, model.opset_import[0].version)
    outputs = [
        helper.make_tensor_value_info(head, kind, [BATCH, height, width])
        for head, kind in ((MASK, mask_type(classes)), (CONFIDENCE, TensorProto.UINT8))
        if head in heads
    ]
    if LOGITS in heads:
        shape = [BATCH, classes, *lengths]
        outputs.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, shape))
    del graph.graph.output[:]
    graph.graph.output.extend(outputs)


def _add_confidence(graph: OnnxGraph, full: str, opset: int) -> None:
    graph.set_constant("confidence_scale", np.array(255, np.float32))
    graph.append("Softmax", [full], "shares", axis=1)
    if opset < 18:  # from then on the axes are an input
        graph.append("ReduceMax", ["shares"], "largest", keepdims=0, axes=[1])
    else:
        graph.set_constant("largest_axes", np.array([1], np.int64))
        graph.append("ReduceMax", ["shares", "largest_axes"], "largest", keepdims=0)
    graph.append("Mul", ["largest", "confidence_scale"], "scaled")
    graph.append("Round", ["scaled"], "rounded")
    graph.append("Cast", ["rounded"], CONFIDENCE, to=TensorProto.UINT8)


@dataclass(frozen=True)
class GraphEnds:
    """The nodes at both ends of a graph, by name.

    Attributes:
        before: what the image passes before the first layers.
        first: the layers that read the image, plain or resized.
        last: the layers whose results become the logits (or the labels of a network that outputs
            these alone) without another layer.
        after: what follows ``last``, the mask head too.
    """

    before: frozenset[str]
    first: frozenset[str]
    last: frozenset[str]
    after: frozenset[str]

    @property
    def outside(self) -> frozenset[str]:
        """Returns the nodes before and behind the network proper."""
        return self.before | self.after


def graph_ends(model: ModelProto) -> GraphEnds:
    """Returns the ends of a graph whose nodes have names (``name_nodes``)."""
    graph = OnnxGraph(model)
    before, first = _walk(graph, model.graph.input[0].name, forward=True)
    # A network that outputs labels alone has no logits.
    scores = MASK if graph.producer(LOGITS) is None else LOGITS
    between, last = _walk(graph, scores, forward=False)
    heads, _ = _walk(graph, scores, forward=True)
    return GraphEnds(before, first, last, between | heads)


def _walk(graph: OnnxGraph, start: str, *, forward: bool) -> tuple[frozenset[str], frozenset[str]]:
    """Walks from a tensor to the nearest layers; returns the nodes passed, and those layers."""
    passed: set[str] = set()
    layers: set[str] = set()
    tensors = [start]
    while tensors:
        for node in _neighbours(graph, tensors.pop(), forward=forward):
            if node.op_type in LAYERS:
                layers.add(node.name)
            elif node.name not in passed:
                passed.add(node.name)
                tensors += list(node.output) if forward else list(node.input)
    return frozenset(passed), frozenset(layers)


def _neighbours(graph: OnnxGraph, tensor: str, *, forward: bool) -> list[NodeProto]:
    if forward:
        return graph.consumers(tensor)
    producer = graph.producer(tensor)
    return [] if producer is None else [producer]
