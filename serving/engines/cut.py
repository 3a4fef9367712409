"""Cuts an ONNX graph to what one output needs.

ONNX Runtime executes every node whichever outputs are fetched, so a mask head that nobody reads
would still cost its time.
"""

from __future__ import annotations

import onnx


def cut_graph(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """A copy with ``output`` as its only output, and without nodes and weights it does not need.

    Raises:
        ValueError: the graph has no such output.
    """
    graph = model.graph
    kept_outputs = [value for value in graph.output if value.name == output]
    if not kept_outputs:
        names = ", ".join(value.name for value in graph.output)
        raise ValueError(f"no output {output!r}; the graph has: {names}")
    needed = {output}
    nodes = []
    # Nodes are in topological order, so one walk backwards meets every use before its source.
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(name for name in node.input if name)
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    for field, items in (
        (cut.graph.node, list(reversed(nodes))),
        (cut.graph.output, kept_outputs),
        (cut.graph.initializer, [i for i in graph.initializer if i.name in needed]),
        (cut.graph.input, [i for i in graph.input if i.name in needed]),
    ):
        del field[:]
        field.extend(items)
    del cut.graph.value_info[:]
    return cut


def find_precision(model: onnx.ModelProto) -> str:
    """``int8`` with quantised nodes, ``fp16`` with half-precision weights, else ``fp32``."""
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    if any(i.data_type == onnx.TensorProto.FLOAT16 for i in model.graph.initializer):
        return "fp16"
    return "fp32"


def narrow_output(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose one float32 output is float16, its name unchanged: half the bytes to carry.

    Of a graph that computes in float16 the values have no more than its 11 bits, but for what
    the last resize interpolates: the rounding is within half a unit of the eleventh bit.
    """
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
