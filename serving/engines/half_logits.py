"""Logits of an fp16 graph leave a GPU as float16."""

from __future__ import annotations

import onnx

from serving.engines.graph import LOGITS, find_precision


def narrow_half_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns an fp16 graph whose float32 logits are float16: half the bytes leave the GPU.

    Args:
        model: with one output; returned as it is where that is not ``logits`` or the graph is
            not fp16.

    Of a graph that computes in float16 the values have no more than its 11 bits, but for what
    the last resize interpolates: the rounding is within half a unit of the eleventh bit.
    """
    (output,) = model.graph.output
    if output.name != LOGITS or find_precision(model) != "fp16":
        return model
    narrow = onnx.ModelProto()
    narrow.CopyFrom(model)
    (output,) = narrow.graph.output
    wide = f"{output.name}_float32"
    for node in narrow.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == output.name:
                    names[position] = wide
    cast = onnx.helper.make_node(
        "Cast", [wide], [output.name], name=f"{output.name}_float16", to=onnx.TensorProto.FLOAT16
    )
    narrow.graph.node.append(cast)
    output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return narrow
