"""A half-precision graph in float32: for the CPU, where halves only cost."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, checker, numpy_helper, shape_inference

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def widen(model: ModelProto) -> ModelProto:
    """A copy that computes in float32 with the same (rounded) weights."""
    wide = ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    graph = shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    kept, renamed = [], {}
    for node in wide.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        source, target = types.get(node.input[0]), types.get(node.output[0])
        if node.op_type == "Cast" and source in FLOATS and target in FLOATS:
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    # An output keeps its name.
    for value in wide.graph.output:
        if value.name in renamed:
            inner = renamed[value.name]
            for node in kept:
                node.input[:] = [value.name if n == inner else n for n in node.input]
                node.output[:] = [value.name if n == inner else n for n in node.output]
    del wide.graph.node[:]
    wide.graph.node.extend(kept)
    del wide.graph.value_info[:]
    checker.check_model(wide)
    return wide
