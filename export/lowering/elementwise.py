"""Operators that compute position by position, as ONNX nodes, and sums of several tensors."""

from __future__ import annotations

import math

from onnx import TensorProto

from export.lowering.context import Lowering, LoweringContext, Nodes, single
from export.symbols.elementwise import evaluate


class OnnxMaths:
    """Adds nodes for the formulas of ``export.symbols.elementwise``."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes

    def __call__(self, op: str, *inputs: str | float, **attributes: float) -> str:
        names = [self.nodes.number(x) if isinstance(x, float | int) else x for x in inputs]
        if op == "Float":
            return self.nodes.add("Cast", names, to=TensorProto.FLOAT)
        if op == "Mod":
            return self.nodes.add("Mod", names, fmod=1)
        if op == "PRelu":
            rank = len(self.nodes.context.input_shapes[0])
            names[1] = self.nodes.reshape(names[1], [-1, *[1] * (rank - 2)], "slope")
        return self.nodes.add(op, names, "", **attributes)


def elementwise(context: LoweringContext) -> Lowering:
    """Returns the nodes of a formula; the last has the operator's name."""
    nodes = Nodes(context)
    return nodes.end(evaluate(OnnxMaths(nodes), context.node, context.inputs))


def summing(context: LoweringContext) -> Lowering:
    """Returns an ONNX Sum of any number of tensors."""
    return single(context, "Sum", context.inputs)


def divided_by_root(context: LoweringContext) -> Lowering:
    """Returns ``_contrib_div_sqrt_dim``: the values by the root of the last length."""
    nodes = Nodes(context)
    root = nodes.number(math.sqrt(context.shape[-1]))
    return nodes.end(nodes.add("Div", [context.inputs[0], root]))
