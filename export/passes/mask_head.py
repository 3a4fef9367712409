"""Adds the outputs of the contract: ``logits`` at the head's resolution, ``mask`` and
``confidence`` at the image's.

``mask`` is the argmax of the logits resized to the image with aligned corners, as the networks
are trained; of equal classes the lower id wins. ``confidence`` is the winner's softmax times 255,
rounded to even.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from export.errors import ExportError
from export.lowering.context import resize_nodes
from export.lowering.convert import BATCH
from export.passes.onnx_graph import OnnxGraph
from serving.palette import MAX_CLASSES, label_type

MASK, LOGITS, CONFIDENCE = "mask", "logits", "confidence"
HEADS = (MASK, LOGITS)
ALL_HEADS = (MASK, CONFIDENCE, LOGITS)


def mask_type(classes: int) -> int:
    """Returns ONNX's type of a label map of so many classes."""
    return int(helper.np_dtype_to_tensor_dtype(label_type(classes)))


def mask_head(model: ModelProto, height: int, width: int, heads: Sequence[str] = HEADS) -> None:
    """Edits in place a model whose first output is float32 logits [N, C, h, w].

    Afterwards its outputs are those of ``heads``: ``mask`` (with more than 255 classes uint16) and
    ``confidence`` uint8 [N, height, width], ``logits`` float32 [N, C, h, w]. Raises ExportError for
    other heads or over 65,535 classes.
    """
    if not heads or set(heads) - set(ALL_HEADS):
        raise ExportError(
            f"--head takes one or more of {', '.join(ALL_HEADS)}, not"
            f" {','.join(heads) or 'nothing'}"
        )
    graph = OnnxGraph(model)
    source = graph.graph.output[0]
    _, classes, *lengths = (d.dim_value for d in source.type.tensor_type.shape.dim)
    if classes > MAX_CLASSES:
        raise ExportError(f"{classes} classes: expected at most {MAX_CLASSES}")
    producer = graph.producer(source.name)
    if producer is not None:
        for consumer in graph.consumers(source.name):
            for position, name in enumerate(consumer.input):
                if name == source.name:
                    consumer.input[position] = LOGITS
        producer.output[list(producer.output).index(source.name)] = LOGITS
    outputs = []
    full = LOGITS
    if MASK in heads or CONFIDENCE in heads:
        nodes, constants = resize_nodes(
            "logits_full_size", LOGITS, lengths, (height, width), aligned=True
        )
        full = "logits_full_size" if nodes else LOGITS
        graph.graph.node.extend(nodes)
        graph.graph.initializer.extend(constants)
    if MASK in heads:
        graph.graph.node.append(
            helper.make_node("ArgMax", [full], ["labels"], name="labels", axis=1, keepdims=0)
        )
        graph.graph.node.append(
            helper.make_node("Cast", ["labels"], [MASK], name=MASK, to=mask_type(classes))
        )
    if CONFIDENCE in heads:
        graph.set_constant("confidence_scale", np.array(255, np.float32))
        graph.graph.node.extend(_confidence(graph, full, model.opset_import[0].version))
    outputs += [
        helper.make_tensor_value_info(head, kind, [BATCH, height, width])
        for head, kind in ((MASK, mask_type(classes)), (CONFIDENCE, TensorProto.UINT8))
        if head in heads
    ]
    if LOGITS in heads:
        shape = [BATCH, classes, *lengths]
        outputs.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, shape))
    del graph.graph.output[:]
    graph.graph.output.extend(outputs)


def _confidence(graph: OnnxGraph, full: str, opset: int) -> list[NodeProto]:
    softmax = helper.make_node("Softmax", [full], ["shares"], name="shares", axis=1)
    largest = helper.make_node("ReduceMax", ["shares"], ["largest"], name="largest", keepdims=0)
    if opset < 18:  # from then on the axes are an input
        largest.attribute.append(helper.make_attribute("axes", [1]))
    else:
        graph.set_constant("largest_axes", np.array([1], np.int64))
        largest.input.append("largest_axes")
    steps = [
        helper.make_node("Mul", ["largest", "confidence_scale"], ["scaled"], name="scaled"),
        helper.make_node("Round", ["scaled"], ["rounded"], name="rounded"),
        helper.make_node("Cast", ["rounded"], [CONFIDENCE], name=CONFIDENCE, to=TensorProto.UINT8),
    ]
    return [softmax, largest, *steps]
