"""An ONNX graph that is edited in place, with an index of who computes and who reads each tensor.

The nodes stay protobufs, as everything around them (ONNX's shape inference, checker and version
converter, ONNX Runtime's quantizer, the serving engines) takes and returns these. The index is kept
through edits, so a tensor's producer and readers are found without a scan; nodes are compared by
identity, never by value.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

_log = logging.getLogger("export.passes")

Shapes: TypeAlias = dict[str, tuple[int, ...]]
# Shapes and axes are shorter, weights longer: shape inference needs the values of the former alone.
_SHORT = 1024


class OnnxGraph:
    """An index over a model's main graph. Edits go to the model at once.

    While one is in use, nodes and their inputs and outputs are changed through its methods alone;
    attributes may be changed anywhere.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self._shapes: Shapes = {}
        self.reindex()

    def reindex(self) -> None:
        """Reads the nodes again: for edits that were made on the model itself."""
        self._nodes: list[NodeProto] = list(self.graph.node)
        self._producers: dict[str, list[NodeProto]] = {}
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in self._nodes:
            self._enter(node)

    def nodes(self, *operators: str) -> list[NodeProto]:
        """Returns the nodes in the graph's order: all, or those of these operators."""
        return [n for n in self._nodes if not operators or n.op_type in operators]

    def producer(self, tensor: str) -> NodeProto | None:
        """Returns the node that computes a tensor; None for inputs and constants."""
        found = self._producers.get(tensor)
        return found[0] if found else None

    def consumers(self, tensor: str) -> list[NodeProto]:
        """Returns the nodes that read a tensor, each once."""
        return list(self._consumers.get(tensor, ()))

    def reader(self, tensor: str) -> NodeProto | None:
        """Returns the node that alone reads a tensor; None where others do, or the graph outputs
        it."""
        found = self._consumers.get(tensor, ())
        return found[0] if len(found) == 1 and not self.is_output(tensor) else None

    def is_output(self, tensor: str) -> bool:
        """Returns True for an output of the graph."""
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

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Returns a tensor's shape, 0 where a length is not known; () where none is inferred.

        They are inferred again only for a tensor that is new, or whose node got other inputs.
        Raises onnx.shape_inference.InferenceError where shapes do not fit each other.
        """
        if tensor not in self._shapes:
            names = (name for node in self._nodes for name in node.output)
            self._shapes = dict.fromkeys(names, ()) | infer_shapes(self.model, strict_mode=True)
        return self._shapes.get(tensor, ())

    def set_input(self, node: NodeProto, position: int, tensor: str) -> None:
        """Lets a node read another tensor at one of its inputs, or at one behind its last."""
        names = list(node.input)
        self.set_inputs(node, [*names[:position], tensor, *names[position + 1 :]])

    def set_inputs(self, node: NodeProto, tensors: Iterable[str]) -> None:
        """Lets a node read these tensors, in this order."""
        self._leave(node)
        names = list(tensors)
        del node.input[:]
        node.input.extend(names)
        self._enter(node)
        for name in node.output:  # it may have another number of channels now
            self._shapes.pop(name, None)

    def set_output(self, node: NodeProto, position: int, tensor: str) -> None:
        """Renames one of a node's outputs; the readers of the old name still read that."""
        self._leave(node)
        node.output[position] = tensor
        self._enter(node)

    def rename(self, tensor: str, name: str) -> None:
        """Renames a tensor at the node that computes it and at all of its readers."""
        for node in self.consumers(tensor):
            self.set_inputs(node, [name if read == tensor else read for read in node.input])
        producer = self.producer(tensor)
        if producer is not None:
            self.set_output(producer, list(producer.output).index(tensor), name)

    def take_over(self, node: NodeProto, removed: NodeProto) -> None:
        """Removes a node and lets another compute its output; nothing else reads that one's own."""
        name = removed.output[0]
        self.remove(removed)
        self.set_output(node, 0, name)

    def remove(self, node: NodeProto) -> None:
        """Removes a node; its output must have another producer or no reader."""
        index = self._index(node)
        self._leave(node)
        del self._nodes[index]
        del self.graph.node[index]

    def append(self, op: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        """Adds a node behind all others (:func:`make_node`); returns its output."""
        self._insert(len(self._nodes), [make_node(op, inputs, output, **attributes)])
        return output

    def insert_first(self, nodes: Sequence[NodeProto]) -> None:
        """Puts nodes in front of all others."""
        self._insert(0, nodes)

    def insert_after(self, node: NodeProto, added: Sequence[NodeProto]) -> None:
        """Puts nodes behind one of the graph's."""
        self._insert(self._index(node) + 1, added)

    def extend(self, nodes: Sequence[NodeProto], constants: Sequence[TensorProto] = ()) -> None:
        """Puts nodes behind all others, and adds the constants that they read."""
        for tensor in constants:
            self.set_constant(tensor.name, numpy_helper.to_array(tensor))
        self._insert(len(self._nodes), nodes)

    def drop_dead(self) -> None:
        """Drops nodes whose outputs nobody reads, then constants without a reader."""
        alive = {output.name for output in self.graph.output}
        for node in reversed(self.nodes()):
            if alive.isdisjoint(node.output):
                self.remove(node)
            else:
                alive.update(node.input)
        for index in reversed(range(len(self.graph.initializer))):
            name = self.graph.initializer[index].name
            if name not in alive:
                del self.graph.initializer[index]
                del self._constants[name]

    def _insert(self, index: int, nodes: Sequence[NodeProto]) -> None:
        for place, node in enumerate(nodes, index):
            self.graph.node.insert(place, node)
            self._nodes.insert(place, self.graph.node[place])
            self._enter(self._nodes[place])

    def _index(self, node: NodeProto) -> int:
        for index, known in enumerate(self._nodes):
            if known is node:
                return index
        raise ValueError(f"{node.name!r} is not a node of this graph: expected one of its nodes()")

    def _enter(self, node: NodeProto) -> None:
        for name in node.output:
            self._producers.setdefault(name, []).append(node)
        for name in dict.fromkeys(node.input):
            self._consumers.setdefault(name, []).append(node)

    def _leave(self, node: NodeProto) -> None:
        for index, names in ((self._producers, node.output), (self._consumers, node.input)):
            for name in dict.fromkeys(names):
                index[name] = [known for known in index[name] if known is not node]


@dataclass(frozen=True)
class Outcome:
    """The effect of a rewrite on a graph.

    Attributes:
        applied: the names of the nodes at which it applied, in the graph's order.
        left: why it left the others as they are, by the node's name.
    """

    applied: tuple[str, ...]
    left: Mapping[str, str]


Attempt: TypeAlias = Callable[[OnnxGraph, NodeProto], str | None]


class Rewrite:
    """An exact rewrite, tried at every node of some operators.

    It is made by :func:`rewrite_at` of a function that is called with the graph and one node, and
    edits the graph or returns why it does not apply there.
    """

    def __init__(self, attempt: Attempt, operators: tuple[str, ...]) -> None:
        self._attempt, self._operators = attempt, operators
        self.name: str = attempt.__name__
        update_wrapper(self, attempt)

    def __call__(self, model: ModelProto) -> int:
        """Rewrites a model in place; returns at how many nodes it applied."""
        return len(self.apply(OnnxGraph(model)).applied)

    def apply(self, graph: OnnxGraph) -> Outcome:
        """Rewrites a graph in place. The reasons are also logged (``export.passes``, DEBUG)."""
        applied: list[str] = []
        left: dict[str, str] = {}
        for node in graph.nodes(*self._operators):
            reason = self._attempt(graph, node)
            if reason is None:
                applied.append(node.name)
            else:
                left[node.name] = reason
                _log.debug("%s leaves %s: %s", self.name, node.name, reason)
        if applied:
            graph.drop_dead()
        return Outcome(tuple(applied), left)


def rewrite_at(*operators: str) -> Callable[[Attempt], Rewrite]:
    """Makes a function a :class:`Rewrite` that is tried at the nodes of these operators."""
    return lambda attempt: Rewrite(attempt, operators)


def make_node(op: str, inputs: Sequence[str], output: str, **attributes: object) -> NodeProto:
    """Returns a node of one output, whose name it bears."""
    node: NodeProto = helper.make_node(op, list(inputs), [output], name=output, **attributes)
    return node


def copy_model(model: ModelProto) -> ModelProto:
    """Returns a copy that shares nothing with the model."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def infer_shapes(model: ModelProto, *, strict_mode: bool = False) -> Shapes:
    """Returns the shape of every tensor that ONNX infers, 0 where a length is symbolic or unknown.

    Weights are not copied for it: of a long constant only the shape is passed on. Raises
    onnx.shape_inference.InferenceError in ``strict_mode``, where shapes do not fit each other.
    """
    return {
        name: tuple(length.dim_value for length in tensor.shape.dim)
        for name, tensor in _infer_types(model, strict_mode).items()
    }


def element_types(model: ModelProto) -> dict[str, int]:
    """Returns the element type of every tensor that ONNX infers (``TensorProto.FLOAT``, ...)."""
    types = {name: int(t.elem_type) for name, t in _infer_types(model, False).items()}
    return types | {tensor.name: int(tensor.data_type) for tensor in model.graph.initializer}


def _infer_types(model: ModelProto, strict_mode: bool) -> dict[str, Any]:
    probe = ModelProto()
    probe.ir_version = model.ir_version
    probe.opset_import.extend(model.opset_import)
    graph, source = probe.graph, model.graph
    graph.name = source.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, field).extend(getattr(source, field))
    given = {value.name for value in source.input}
    for tensor in source.initializer:
        if math.prod(tensor.dims) <= _SHORT:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)
    inferred = shape_inference.infer_shapes(probe, strict_mode=strict_mode, data_prop=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: value.type.tensor_type for value in values}


def is_half(model: ModelProto) -> bool:
    """Returns True where a network has weights or an input in half precision.

    That decides which rewrites are possible, also in a network with quantised layers; what a
    served model's precision is called is ``serving.engines.graph.find_precision``.
    """
    inputs = {value.type.tensor_type.elem_type for value in model.graph.input}
    return TensorProto.FLOAT16 in inputs | {t.data_type for t in model.graph.initializer}


def name_nodes(model: ModelProto) -> None:
    """Names every node of a model, each differently, in place."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


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


def texts(node: NodeProto) -> dict[str, str]:
    """Returns the text attributes of a node, without the empty ones."""
    return {a.name: a.s.decode() for a in node.attribute if a.s}


def is_aligned_resize(node: NodeProto) -> bool:
    """Returns True for a bilinear resize with aligned corners."""
    found = texts(node)
    return (
        node.op_type == "Resize"
        and found.get("mode") == "linear"
        and found.get("coordinate_transformation_mode") == "align_corners"
    )
