"""A tiny ONNX graph of the contract, made by hand."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper


def make_graph(
    outputs: tuple[str, ...] = ("mask", "logits"),
    height: int | str = 4,
    channels: int = 3,
    datatype: int = TensorProto.UINT8,
) -> onnx.ModelProto:
    """``logits`` are the channels as floats; ``mask`` is their argmax."""
    shape = ["N", height, 6, channels]
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "one"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["winner"], axis=1, keepdims=0),
        helper.make_node("Add", ["winner", "zero"], ["shifted"]),
        helper.make_node("Cast", ["shifted"], ["mask"], to=TensorProto.UINT8),
    ]
    known = {
        "mask": helper.make_tensor_value_info("mask", TensorProto.UINT8, ["N", height, 6]),
        "logits": helper.make_tensor_value_info(
            "logits", TensorProto.FLOAT, ["N", channels, height, 6]
        ),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", datatype, shape)],
        [known[name] for name in outputs],
        [
            helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
            helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
