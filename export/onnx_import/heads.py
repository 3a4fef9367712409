"""Turns what a foreign network gives out into what the mask head takes, or into the mask."""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto, TensorProto, helper

from export.errors import InvalidNetwork
from export.lowering.context import resize_nodes
from export.lowering.convert import BATCH
from export.onnx_import.outputs import NONE, SIGMOID, Labels, Scores
from export.passes.mask_head import MASK
from export.passes.onnx_graph import OnnxGraph, is_half


def label_head(model: ModelProto, found: Labels, height: int, width: int, kind: int) -> None:
    """Turns integers [N, h, w] or [N, 1, h, w] into ``mask`` [N, height, width] of ONNX's type
    ``kind``."""
    graph = model.graph
    current = "mask_ids"
    graph.node.append(helper.make_node("Cast", [found.tensor], [current], name=current, to=kind))
    steps = OnnxGraph(model)
    steps.set_constant("mask_axis", np.array([1], np.int64))
    if found.rank == 3:
        graph.node.append(
            helper.make_node("Unsqueeze", [current, "mask_axis"], ["mask_map"], name="mask_map")
        )
        current = "mask_map"
    nodes, constants = resize_nodes(
        "mask_resized", current, (found.height, found.width), (height, width), aligned=False
    )
    for node in nodes:  # ids cannot be interpolated
        del node.attribute[:]
        node.attribute.extend(
            [
                helper.make_attribute("mode", "nearest"),
                helper.make_attribute("coordinate_transformation_mode", "half_pixel"),
            ]
        )
        current = node.output[0]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    graph.node.append(helper.make_node("Squeeze", [current, "mask_axis"], [MASK], name=MASK))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(MASK, kind, [BATCH, height, width]))


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
    graph = model.graph
    current = found.tensor

    def add(op: str, name: str, *constants: str) -> None:
        nonlocal current
        graph.node.append(helper.make_node(op, [current, *constants], [name], name=name))
        current = name

    steps = OnnxGraph(model)
    if found.axis == 3:
        add("Transpose", "scores_nchw")
        graph.node[-1].attribute.append(helper.make_attribute("perm", [0, 3, 1, 2]))
    if is_half(model):
        add("Cast", "scores")
        graph.node[-1].attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    notes = [_describe(found)]
    if found.threshold is not None and threshold is not None:
        raise InvalidNetwork(
            f"the network compares with {found.threshold:g} itself: leave --threshold out"
        )
    if found.classes == 1:
        threshold = found.threshold if threshold is None else threshold
        shift = threshold_shift(found, threshold)
        steps.set_constant("scores_threshold", np.array(shift, np.float32))
        add("Sub", "scores_above", "scores_threshold")
        # The first class scores 0, so the second one wins above the threshold and not at it.
        steps.set_constant("scores_background", np.array([0, 1, 0, 0, 0, 0, 0, 0], np.int64))
        add("Pad", "scores_of_two", "scores_background")
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
            graph.node.extend(nodes)
            graph.initializer.extend(constants)
            current, (height, width) = "scores_resized", image
            notes.append("resized to the image with half-pixel centres inside the graph")
    if (height, width) == image:
        notes.append("logits are of the image's size")
    classes = max(2, found.classes)
    del graph.output[:]
    graph.output.append(
        helper.make_tensor_value_info(current, TensorProto.FLOAT, [BATCH, classes, height, width])
    )
    return notes


def threshold_shift(found: Scores, threshold: float | None) -> float:
    """Returns what to subtract so that the channel is above 0 where it is above the threshold."""
    if threshold is None:
        raise InvalidNetwork(
            "the network gives one channel; say with --threshold above which value of it the second"
            " class is there (0.5 for a sigmoid, 0 for a logit)"
        )
    if found.activation != SIGMOID:
        return threshold
    if not 0 < threshold < 1:
        raise InvalidNetwork(f"--threshold {threshold:g} of a sigmoid lies between 0 and 1")
    return math.log(threshold / (1 - threshold))


def _describe(found: Scores) -> str:
    ends = [found.activation] if found.activation != NONE else []
    ends += ["resize with aligned corners"] if found.resized else []
    ends += [] if found.threshold is None else ["comparison"]
    ends += ["argmax"] if found.argmax and found.threshold is None else []
    taken = f"logits taken before {', '.join(ends)}" if ends else "scores as the network gives them"
    return f"{taken}, {found.classes} x {found.height}x{found.width}"
