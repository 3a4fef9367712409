"""Finds the node of a network that stops giving numbers: NaN, or infinity where labels are made.

Labels hide it: an argmax of NaN is class 0, and a ReLU may turn NaN into 0, so a network whose
batch norm is broken agrees with itself in every pixel. The network is run once an image with a
counter of NaN and of infinite values behind every tensor of floats. NaN is refused anywhere, but
where the network asks for it (``IsNaN``, as PyTorch's attention does). Infinity is refused where it
reaches an output, or a node that makes integers of floats (``ArgMax``, ``Greater``, ...): elsewhere
it may be meant (a mask of attention), or harmless (the exponential inside a sigmoid).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
_ASKS = ("IsNaN", "IsInf")
_SHAPES = ("Shape", "Size")
_PREFIX = "segserve_finite_"


@dataclass(frozen=True)
class NotFinite:
    """The first node of a network, in the order of its file, whose output is not finite.

    Attributes:
        node: its name, operator and output.
        value: NaN or infinity.
        image: the one that was shown to the network.
        weight: a constant that it reads and that is not finite itself.
    """

    node: str
    value: str
    image: str
    weight: str | None = None

    def __str__(self) -> str:
        because = "" if self.weight is None else f" (its weight {self.weight!r} is not finite)"
        return f"{self.node} gives {self.value} for {self.image}{because}"


def find_not_finite(
    model: ModelProto,
    images: Mapping[str, NDArray[np.generic]],
    original: ModelProto | None = None,
) -> NotFinite | None:
    """Returns the first node that is to blame where ``model`` does not give numbers, else None.

    Args:
        model: of opset 13 or newer, without local functions; it stays as it is.
        images: by what a message calls each, the model's one input.
        original: the one that ``model`` was made of, some of whose tensors it computes: only these
            are looked at, and its nodes named. None is ``model`` itself.

    Raises what ONNX Runtime raises where it cannot run the model.
    """
    types = _element_types(model)
    original = model if original is None else original
    order = [node for node in original.graph.node if node.op_type != "Constant"]
    watched = [n for node in order for n in node.output if types.get(n) in _FLOATS]
    if not watched:
        return None
    session = _counting_session(model, watched, types)
    names = [output.name for output in session.get_outputs()]
    (wanted,) = session.get_inputs()
    deciding = _deciding(model, types)
    asked = {name for node in order if node.op_type in _ASKS for name in node.input}
    for title, image in images.items():
        counts = dict(zip(names, session.run(names, {wanted.name: image}), strict=True))
        wrong = {
            name: "NaN" if counts[f"{_PREFIX}nan_{name}"] else "infinity"
            for name in watched
            if counts[f"{_PREFIX}nan_{name}"] or counts[f"{_PREFIX}inf_{name}"]
        }
        if any((v == "NaN" and n not in asked) or n in deciding for n, v in wrong.items()):
            return _blame(original, order, wrong, title)
    return None


def not_finite(array: NDArray[np.generic]) -> bool:
    """Returns True where an array of floats holds NaN or infinity."""
    return array.dtype.kind == "f" and not np.isfinite(array).all()


def _element_types(model: ModelProto) -> dict[str, int]:
    inferred = shape_inference.infer_shapes(model).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return {value.name: int(value.type.tensor_type.elem_type) for value in values}


def _deciding(model: ModelProto, types: dict[str, int]) -> set[str]:
    """Returns the tensors of floats, computed from the image, that outputs and integers are made
    of."""
    from_image = {model.graph.input[0].name}
    deciding = {output.name for output in model.graph.output}
    for node in model.graph.node:
        if node.op_type in _SHAPES or from_image.isdisjoint(node.input):
            continue
        from_image.update(node.output)
        kind = types.get(node.output[0])
        if node.op_type not in _ASKS and kind is not None and kind not in _FLOATS:
            deciding.update(node.input)
    return deciding & from_image


def _counting_session(
    model: ModelProto, watched: list[str], types: dict[str, int]
) -> onnxruntime.InferenceSession:
    """Returns a session whose only outputs are the counts of each tensor."""
    probe = ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    del graph.output[:]
    for name in watched:
        source = name
        if types[name] != TensorProto.FLOAT:
            source = f"{_PREFIX}float_{name}"
            graph.node.append(helper.make_node("Cast", [name], [source], to=TensorProto.FLOAT))
        for kind, op in (("nan", "IsNaN"), ("inf", "IsInf")):
            flags, numbers, count = (f"{_PREFIX}{kind}{part}_{name}" for part in ("s", "01", ""))
            graph.node.append(helper.make_node(op, [source], [flags]))
            graph.node.append(helper.make_node("Cast", [flags], [numbers], to=TensorProto.FLOAT))
            graph.node.append(helper.make_node("ReduceSum", [numbers], [count], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(count, TensorProto.FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # As it is written: a fused node would take the blame of another one.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _blame(
    model: ModelProto, order: list[NodeProto], wrong: dict[str, str], image: str
) -> NotFinite:
    node, output = next((node, name) for node in order for name in node.output if name in wrong)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = next(
        (
            name
            for name in node.input
            if name in constants and not_finite(numpy_helper.to_array(constants[name]))
        ),
        None,
    )
    called = f"{node.op_type} {node.name!r}" if node.name else node.op_type
    return NotFinite(f"{called} (output {output!r})", wrong[output], image, weight)
