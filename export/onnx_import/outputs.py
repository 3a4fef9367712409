"""Finds the class scores in what a foreign network outputs, and makes the contract's of them.

Networks end in logits, a softmax, a sigmoid or an argmax, resized to the image or not. The walk
goes back from the output through what does not change which class wins, to the scores at the head's
own resolution where the last resize has aligned corners (as the contract's ``logits`` are resized).
``score_head`` then makes them what ``export.passes.contract.mask_head`` takes; ``label_head`` makes
the mask of a network that outputs labels alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from export.errors import InvalidNetwork
from export.lowering.context import resize_nodes
from export.lowering.convert import BATCH
from export.onnx_import.static_shapes import FrozenNetwork
from export.passes.contract import MASK
from export.passes.onnx_graph import (
    OnnxGraph,
    Shapes,
    copy_model,
    infer_shapes,
    integers,
    is_aligned_resize,
    is_half,
)

NONE, SOFTMAX, LOG_SOFTMAX, SIGMOID = "none", "softmax", "log-softmax", "sigmoid"
_ACTIVATIONS = {"Softmax": SOFTMAX, "LogSoftmax": LOG_SOFTMAX}
_CHANNELS_LAST = (0, 2, 3, 1)


@dataclass(frozen=True)
class Labels:
    """The output of a network of class ids alone: ``tensor`` integer [N, h, w] or [N, 1, h, w]."""

    tensor: str
    height: int
    width: int
    rank: int


@dataclass(frozen=True)
class Scores:
    """Says where a network's scores are, and what it does with them afterwards.

    ``tensor`` is float [N, C, height, width] (``axis`` 1) or [N, height, width, C] (``axis`` 3).
    ``activation`` follows it in the network, ``resized`` says that a resize with aligned corners to
    the image's size does, ``argmax`` that the network outputs labels, ``threshold`` that it makes
    them of one channel, by comparing the result of ``activation`` with it.
    """

    tensor: str
    axis: int
    classes: int
    height: int
    width: int
    activation: str = NONE
    resized: bool = False
    argmax: bool = False
    threshold: float | None = None


def find_output(
    network: FrozenNetwork, classes: int, image: tuple[int, int], channels_last: bool
) -> Labels | Scores:
    """Returns what the network's output is, for so many classes and images of height x width.

    ``channels_last`` decides where the output's shape leaves it open. One channel stands for two
    classes. Raises InvalidNetwork where the output is not a map of classes.
    """
    graph = OnnxGraph(network.model)
    shapes = _static_shapes(network.model)
    name = network.model.graph.output[0].name
    compared = _compared_scores(graph, shapes, name, classes, image)
    if compared is not None:
        return _walk(graph, shapes, compared, image)
    if np.issubdtype(network.sample.dtype, np.integer) or network.sample.dtype == np.bool_:
        shape = network.shape
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[1] != 1):
            raise InvalidNetwork(
                f"the output {name} has integers {list(shape)}: expected labels [N, H, W]; choose"
                " another output with --output"
            )
        start = _before_argmax(graph, name)
        small = shape[-2:] != image
        if small or start is None or len(shapes.get(start[0], ())) != 4:
            return Labels(name, shape[-2], shape[-1], len(shape))
        axis = start[1]
        found = _scores(start[0], axis, shapes[start[0]])
        if found.classes != classes:
            raise _other_classes(start[0], shapes[start[0]], found.classes, classes)
        return _walk(graph, shapes, replace(found, argmax=True), image)
    shape = network.shape
    last = graph.producer(name)
    if len(shape) == 3 and last is not None and last.op_type == "Squeeze":
        name, shape = last.input[0], shapes.get(last.input[0], shape)
    if len(shape) != 4:
        raise InvalidNetwork(
            f"the output {name} is {list(shape)}; scores are [N, classes, H, W] or"
            " [N, H, W, classes], labels integers [N, H, W]"
        )
    axes = (3, 1) if channels_last else (1, 3)
    wanted = {classes, 1} if classes == 2 else {classes}
    axis = next((a for a in axes if shape[a] in wanted), 0)
    if not axis:
        if 1 in (shape[1], shape[3]):
            raise InvalidNetwork(
                f"the output {name} is {list(shape)}: one number a pixel, as a depth or a heat map"
                f" has, and {classes} classes are named. A class and its background are two"
                " classes and a --threshold; other numbers are not served: choose another output"
                " with --output"
            )
        raise _other_classes(name, shape, min(shape[1], shape[3]), classes)
    return _walk(graph, shapes, _scores(name, axis, shape), image)


def _walk(graph: OnnxGraph, shapes: Shapes, scores: Scores, image: tuple[int, int]) -> Scores:
    # A network of small outputs leaves the resize to others: what they interpolate must stay.
    full_size = (scores.height, scores.width) == image
    while (node := graph.producer(scores.tensor)) is not None:
        source = node.input[0] if node.input else ""
        before = scores
        if node.op_type in ("Identity", "Dropout"):
            scores = replace(scores, tensor=source)
        elif node.op_type == "Transpose" and _is_channels_last(node, scores.axis):
            scores = replace(scores, tensor=source, axis=1)
        elif not full_size or scores.resized or len(shapes.get(source, ())) != 4:
            break
        elif node.op_type in _ACTIVATIONS and scores.activation == NONE:
            if integers(node, "axis", (-1,))[0] % 4 == scores.axis and scores.classes > 1:
                activation = _ACTIVATIONS[node.op_type]
                scores = replace(scores, tensor=source, activation=activation)
        elif (inner := _transposed_softmax(graph, node, scores.axis)) and scores.activation == NONE:
            scores = replace(scores, tensor=inner[0], activation=inner[1])
        elif node.op_type == "Sigmoid" and scores.classes == 1 and scores.activation == NONE:
            scores = replace(scores, tensor=source, activation=SIGMOID)
        elif _is_final_resize(node, shapes, scores, image):
            _, _, height, width = shapes[source]
            scores = replace(scores, tensor=source, height=height, width=width, resized=True)
        if scores is before:
            break
    return scores


def _labelling(graph: OnnxGraph, name: str) -> NodeProto | None:
    """Returns the node that makes the labels ``name``: behind it types and shapes alone change."""
    node = graph.producer(name)
    while node is not None and node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze"):
        node = graph.producer(node.input[0])
    return node


def _compared_scores(
    graph: OnnxGraph,
    shapes: Shapes,
    name: str,
    classes: int,
    image: tuple[int, int],
) -> Scores | None:
    """Returns the one channel of image size that a network compares with a constant at its end.

    MMSegmentation's exporter does, and outputs the two labels as floats.
    """
    node = _labelling(graph, name)
    if classes != 2 or node is None or node.op_type not in ("Greater", "GreaterOrEqual"):
        return None
    threshold, shape = graph.constant(node.input[1]), shapes.get(node.input[0], ())
    if threshold is None or threshold.size != 1 or len(shape) != 4:
        return None
    axis = 1 if shape[1] == 1 else 3
    found = _scores(node.input[0], axis, shape)
    if found.classes != 1 or (found.height, found.width) != image:
        return None
    return replace(found, argmax=True, threshold=threshold.item())


def _before_argmax(graph: OnnxGraph, name: str) -> tuple[str, int] | None:
    """Returns the scores that an argmax at the end reads, and their axis of classes."""
    node = _labelling(graph, name)
    if node is None or node.op_type != "ArgMax":
        return None
    axis = integers(node, "axis", (0,))[0] % 4
    last = integers(node, "select_last_index", (0,)) != (0,)
    return None if last or axis not in (1, 3) else (node.input[0], axis)


def _scores(tensor: str, axis: int, shape: tuple[int, ...]) -> Scores:
    height, width = shape[2:] if axis == 1 else shape[1:3]
    return Scores(tensor, axis, shape[axis], height, width)


def _is_channels_last(node: NodeProto, axis: int) -> bool:
    return axis == 3 and integers(node, "perm", ()) == _CHANNELS_LAST


def _transposed_softmax(graph: OnnxGraph, last: NodeProto, axis: int) -> tuple[str, str] | None:
    """Returns what a softmax between two transposes reads, and its kind: PyTorch's form before
    opset 13."""
    softmax = graph.producer(last.input[0]) if last.op_type == "Transpose" else None
    if softmax is None or softmax.op_type not in _ACTIVATIONS:
        return None
    first = graph.producer(softmax.input[0])
    if first is None or first.op_type != "Transpose":
        return None
    there, back = integers(first, "perm", ()), integers(last, "perm", ())
    if len(there) != 4 or [there[i] for i in back] != [0, 1, 2, 3]:
        return None
    right_axis = there[integers(softmax, "axis", (-1,))[0] % 4] == axis
    return (first.input[0], _ACTIVATIONS[softmax.op_type]) if right_axis else None


def _is_final_resize(
    node: NodeProto, shapes: Shapes, scores: Scores, image: tuple[int, int]
) -> bool:
    source = shapes[node.input[0]]
    return (
        is_aligned_resize(node)
        and scores.axis == 1
        and (scores.height, scores.width) == image
        and source[1] == scores.classes
        and all(source)
    )


def _other_classes(name: str, shape: tuple[int, ...], found: int, named: int) -> InvalidNetwork:
    return InvalidNetwork(
        f"the output {name} is {list(shape)}: {found} classes, and {named} are named; give as many"
        " with --classes, or choose another output with --output"
    )


def _static_shapes(model: ModelProto) -> Shapes:
    """Returns shapes by tensor for one image, as far as ONNX infers them; 0 where it does not."""
    probe = copy_model(model)
    probe.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return infer_shapes(probe)


def label_head(model: ModelProto, found: Labels, height: int, width: int, kind: int) -> None:
    """Turns integers [N, h, w] or [N, 1, h, w] into ``mask`` [N, height, width] of ONNX's type
    ``kind``."""
    graph = OnnxGraph(model)
    graph.set_constant("mask_axis", np.array([1], np.int64))
    current = graph.append("Cast", [found.tensor], "mask_ids", to=kind)
    if found.rank == 3:
        current = graph.append("Unsqueeze", [current, "mask_axis"], "mask_map")
    nodes, constants = resize_nodes(
        "mask_resized", current, (found.height, found.width), (height, width), aligned=False
    )
    for node in nodes:  # ids cannot be interpolated
        del node.attribute[:]
        attributes = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel"}
        node.attribute.extend(helper.make_attribute(*named) for named in attributes.items())
        current = node.output[0]
    graph.extend(nodes, constants)
    graph.append("Squeeze", [current, "mask_axis"], MASK)
    _set_output(model, MASK, kind, [BATCH, height, width])


def score_head(
    model: ModelProto,
    found: Scores,
    image: tuple[int, int],
    threshold: float | None,
    aligned: bool | None,
) -> list[str]:
    """Makes the scores the only output, float32 [N, C, h, w]; returns notes on them.

    ``threshold`` and ``aligned`` are those of ``ImportOptions``. Raises InvalidNetwork where one is
    needed.
    """
    graph = OnnxGraph(model)
    current = found.tensor
    if found.axis == 3:
        current = graph.append("Transpose", [current], "scores_nchw", perm=[0, 3, 1, 2])
    if is_half(model):
        current = graph.append("Cast", [current], "scores", to=TensorProto.FLOAT)
    notes = [_describe(found)]
    if found.threshold is not None and threshold is not None:
        raise InvalidNetwork(
            f"the network compares with {found.threshold:g} itself: leave --threshold out"
        )
    if found.classes == 1:
        threshold = found.threshold if threshold is None else threshold
        shift = threshold_shift(found, threshold)
        graph.set_constant("scores_threshold", np.array(shift, np.float32))
        current = graph.append("Sub", [current, "scores_threshold"], "scores_above")
        # The first class scores 0, so the second one wins above the threshold and not at it.
        graph.set_constant("scores_background", np.array([0, 1, 0, 0, 0, 0, 0, 0], np.int64))
        current = graph.append("Pad", [current, "scores_background"], "scores_of_two")
        notes.append(f"two classes by the threshold {threshold:g} on one channel")
    elif threshold is not None:
        raise InvalidNetwork(
            f"--threshold is for networks of one channel, this one has {found.classes}: leave it"
            " out"
        )
    height, width = found.height, found.width
    if not found.resized and (height, width) != image:
        if aligned is None:
            raise InvalidNetwork(
                f"the network's output is {height}x{width}, the image {image[0]}x{image[1]}: say"
                " how its authors resize it, with --align-corners or --half-pixel (what PyTorch's"
                " interpolate and MMSegmentation do by default)"
            )
        if not aligned:
            nodes, constants = resize_nodes(
                "scores_resized", current, (height, width), image, aligned=False
            )
            graph.extend(nodes, constants)
            current, (height, width) = "scores_resized", image
            notes.append("resized to the image with half-pixel centres inside the graph")
    if (height, width) == image:
        notes.append("logits are of the image's size")
    classes = max(2, found.classes)
    _set_output(model, current, TensorProto.FLOAT, [BATCH, classes, height, width])
    return notes


def _set_output(model: ModelProto, name: str, kind: int, shape: list[int | str]) -> None:
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(name, kind, shape))


def threshold_shift(found: Scores, threshold: float | None) -> float:
    """Returns what to subtract so that the channel is above 0 where it is above the threshold."""
    if threshold is None:
        raise InvalidNetwork(
            "the network has one output channel; set with --threshold the value above which a"
            " pixel is"
            " of the second class (0.5 for a sigmoid, 0 for a logit)"
        )
    if found.activation != SIGMOID:
        return threshold
    if not 0 < threshold < 1:
        raise InvalidNetwork(
            f"--threshold {threshold:g} is not valid for a sigmoid: expected a value between 0"
            " and 1"
        )
    return math.log(threshold / (1 - threshold))


def _describe(found: Scores) -> str:
    ends = [found.activation] if found.activation != NONE else []
    ends += ["resize with aligned corners"] if found.resized else []
    ends += [] if found.threshold is None else ["comparison"]
    ends += ["argmax"] if found.argmax and found.threshold is None else []
    taken = (
        f"logits taken before {', '.join(ends)}" if ends else "scores as the network outputs them"
    )
    return f"{taken}, {found.classes} x {found.height}x{found.width}"
