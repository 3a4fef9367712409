"""Looking at and editing an ONNX graph in place: constants, producers, consumers, dead nodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper


class OnnxGraph:
    """An index over a model's main graph. Edits go to the model at once."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}

    def producer(self, tensor: str) -> NodeProto | None:
        """Returns the node that computes a tensor; None for inputs and constants."""
        return next((n for n in self.graph.node if tensor in n.output), None)

    def consumers(self, tensor: str) -> list[NodeProto]:
        """Returns the nodes that read a tensor."""
        return [n for n in self.graph.node if tensor in n.input]

    def is_output(self, tensor: str) -> bool:
        """True where the graph gives a tensor out."""
        return any(output.name == tensor for output in self.graph.output)

    def constant(self, tensor: str) -> NDArray[np.float32] | None:
        """Returns a constant's values, None where the tensor is computed."""
        found = self._constants.get(tensor)
        return None if found is None else numpy_helper.to_array(found)

    def set_constant(self, tensor: str, values: NDArray[np.generic]) -> None:
        """Replaces or adds a constant."""
        proto: TensorProto = numpy_helper.from_array(np.ascontiguousarray(values), tensor)
        if tensor in self._constants:
            self._constants[tensor].CopyFrom(proto)
        else:
            self.graph.initializer.append(proto)
            self._constants[tensor] = self.graph.initializer[-1]

    def remove(self, node: NodeProto) -> None:
        """Takes a node out; its output must have another producer or no reader."""
        self.graph.node.remove(node)

    def insert_first(self, nodes: list[NodeProto]) -> None:
        """Puts nodes in front of all others."""
        rest = list(self.graph.node)
        del self.graph.node[:]
        self.graph.node.extend([*nodes, *rest])

    def insert_after(self, node: NodeProto, added: list[NodeProto]) -> None:
        """Puts nodes behind one of the graph's."""
        index = list(self.graph.node).index(node)
        for offset, new in enumerate(added, 1):
            self.graph.node.insert(index + offset, new)

    def move_before(self, node: NodeProto, other: NodeProto) -> None:
        """Moves a node in front of another one; later references to ``node`` are stale."""
        copy = NodeProto()
        copy.CopyFrom(node)
        self.graph.node.remove(node)
        self.graph.node.insert(list(self.graph.node).index(other), copy)

    def drop_dead(self) -> None:
        """Drops nodes whose outputs nobody reads, then constants without a reader."""
        alive = {output.name for output in self.graph.output}
        for node in reversed(list(self.graph.node)):
            if alive.isdisjoint(node.output):
                self.graph.node.remove(node)
            else:
                alive.update(node.input)
        for tensor in list(self.graph.initializer):
            if tensor.name not in alive:
                self.graph.initializer.remove(tensor)
                del self._constants[tensor.name]


def is_half(model: ModelProto) -> bool:
    """Returns True where a network has weights or an input in half precision."""
    inputs = {value.type.tensor_type.elem_type for value in model.graph.input}
    return TensorProto.FLOAT16 in inputs | {t.data_type for t in model.graph.initializer}


def attribute(node: NodeProto, name: str, default: float) -> float:
    """Returns a float attribute of a node."""
    for candidate in node.attribute:
        if candidate.name == name:
            return float(candidate.f)
    return default


def integers(node: NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Returns an integer attribute, or one of several, of a node; always as a tuple."""
    for candidate in node.attribute:
        if candidate.name == name:
            return tuple(candidate.ints) or (int(candidate.i),)
    return default
