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
