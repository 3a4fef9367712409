"""Reads an ONNX file made elsewhere and normalises it for the import.

Afterwards: operators of ONNX's own set, opset 17 or newer, no functions, no control flow, constants
as initializers, every node named, one float input, one output. Networks that were exported in
training mode are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    inliner,
    numpy_helper,
    version_converter,
)

from export.errors import InvalidNetwork
from export.lowering.convert import DATA, IR_VERSION, OPSET
from export.passes.onnx_graph import copy_model, integers

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
# Names that the graph of the contract uses itself.
_RESERVED = {
    "image", "image_gray", "gray_axis", "gray_colours", "gray_half", "gray_raised", "gray_shares",
    "gray_sum", "gray_weighted", "gray_whole", "image_nchw", "image_float",
    "image_mean", "image_centred", "image_scale", DATA,
    "image_normalised", "image_channels", "confidence", "confidence_scale", "shares", "largest",
    "largest_axes", "scaled", "rounded",
    "logits", "mask", "labels", "logits_full_size", "logits_full_size_scales",
}  # fmt: skip


def read_network(path: Path) -> ModelProto:
    """Reads and checks an ONNX file. Raises InvalidNetwork naming the file and what is wrong."""
    try:
        model: ModelProto = onnx.load(str(path))
        _read_text(model)
        onnx.checker.check_model(_with_output_shapes(model))
    except FileNotFoundError as error:
        raise InvalidNetwork(f"{path} does not exist: expected an .onnx file ({error})") from error
    except Exception as error:  # protobuf, the checker and the reader of external data differ
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidNetwork(f"{path}: not a readable ONNX network: {reason}") from error
    return model


def _read_text(model: ModelProto) -> None:
    """Raises UnicodeError where a name is not text: protobuf reads such names, and fails later."""
    names = [model.producer_name, model.producer_version, *(o.domain for o in model.opset_import)]
    for node in model.graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
        names += [attribute.name for attribute in node.attribute]
    for tensors in (model.graph.input, model.graph.output, model.graph.initializer):
        names += [tensor.name for tensor in tensors]
    "".join(names).encode()


def _with_output_shapes(model: ModelProto) -> ModelProto:
    """Returns the model, or a copy that says something of each output: the checker wants that,
    engines and exporters do not."""
    if all(o.type.tensor_type.HasField("shape") for o in model.graph.output):
        return model
    copy = copy_model(model)
    for output in copy.graph.output:
        output.type.tensor_type.shape.SetInParent()
    return copy


def opset_of(model: ModelProto) -> int:
    """Returns the version of ONNX's own operators; 0 where the model names none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def prepare_network(source: ModelProto, output: str | None) -> ModelProto:
    """Returns a copy in the normalised form, whose one output is ``output`` (default: the
    first).

    Raises InvalidNetwork naming what the network has that no model of the repository can have.
    """
    foreign = sorted(
        {f"{n.domain}.{n.op_type}" for n in source.graph.node if n.domain not in ("", "ai.onnx")}
    )
    own = {f"{f.domain}.{f.name}" for f in source.functions}
    if missing := [name for name in foreign if name not in own]:
        raise InvalidNetwork(
            f"operators outside of ONNX: {', '.join(missing)}; export the network without them"
        )
    model: ModelProto = inliner.inline_local_functions(source) if own else copy_model(source)
    _name_nodes(model.graph)
    _drop_constant_inputs(model.graph)
    _check_input(model.graph)
    _choose_output(model.graph, output)
    refuse_training_mode(model.graph, opset_of(model))
    if opset_of(model) < OPSET:
        model = _convert_up(model)
    _check_control_flow(model.graph)
    _name_nodes(model.graph)
    _constants_to_initializers(model.graph)
    rename(model.graph, {name: f"{name}_of_source" for name in _RESERVED})
    _set_versions(model)
    del model.graph.value_info[:]  # of sizes that the import changes
    return model


def rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Renames tensors of a graph, wherever they stand."""
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                if name in names:
                    field[index] = names[name]
    for tensors in (graph.input, graph.output, graph.initializer, graph.value_info):
        for tensor in tensors:
            tensor.name = names.get(tensor.name, tensor.name)


def _check_input(graph: GraphProto) -> None:
    names = [tensor.name for tensor in graph.input]
    if len(names) != 1:
        raise InvalidNetwork(
            f"the network has {len(names)} inputs ({', '.join(names)}); export it with the image as"
            " its only input"
        )
    tensor = graph.input[0].type.tensor_type
    if tensor.elem_type not in _FLOATS:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise InvalidNetwork(
            f"the input {names[0]} is {kind}; export the network with a FLOAT image as its input"
        )
    if not tensor.HasField("shape") or len(tensor.shape.dim) != 4:
        raise InvalidNetwork(
            f"the input {names[0]} has {len(tensor.shape.dim)} dimensions; export the network with"
            " a batch of images [N, 3, H, W] or [N, H, W, 3] as its input"
        )


def _choose_output(graph: GraphProto, wanted: str | None) -> None:
    names = [tensor.name for tensor in graph.output]
    if not names:
        raise InvalidNetwork("the network has no output; export it with its scores as an output")
    if wanted is not None and wanted not in names:
        raise InvalidNetwork(
            f"--output {wanted!r} is not an output of the network: expected one of"
            f" {', '.join(names)}"
        )
    chosen = wanted or names[0]
    for tensor in list(graph.output):
        if tensor.name != chosen:
            graph.output.remove(tensor)


def _convert_up(model: ModelProto) -> ModelProto:
    before = opset_of(model)
    try:
        converted: ModelProto = version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter's errors have no common class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidNetwork(
            f"opset {before} could not be converted to {OPSET} ({reason}); export the network again"
            f" with opset {OPSET} or newer"
        ) from error
    return converted


def _check_control_flow(graph: GraphProto) -> None:
    found = sorted(
        {n.op_type for n in graph.node if any(a.HasField("g") or a.graphs for a in n.attribute)}
    )
    if found:
        raise InvalidNetwork(
            f"the network has control flow ({', '.join(found)}), which cannot be cut or batched;"
            " export it for one fixed size, or simplify it first"
        )


def _drop_constant_inputs(graph: GraphProto) -> None:
    """Drops the constants that IR 3 lists among the inputs."""
    constants = {tensor.name for tensor in graph.initializer}
    for tensor in [t for t in graph.input if t.name in constants]:
        graph.input.remove(tensor)


def _name_nodes(graph: GraphProto) -> None:
    """Names each node: the passes make names of tensors out of nodes' names."""
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        name = node.name or f"{node.op_type}_{number}"
        if name in taken:
            name = f"{name}_{number}"
        taken.add(name)
        node.name = name


def _constants_to_initializers(graph: GraphProto) -> None:
    for node in [n for n in graph.node if n.op_type == "Constant"]:
        (entry,) = node.attribute
        value = helper.get_attribute_value(entry)
        if entry.name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        elif entry.name in ("value_float", "value_floats"):
            tensor = numpy_helper.from_array(np.array(value, np.float32), node.output[0])
        elif entry.name in ("value_int", "value_ints"):
            tensor = numpy_helper.from_array(np.array(value, np.int64), node.output[0])
        else:
            continue
        graph.initializer.append(tensor)
        graph.node.remove(node)


def _set_versions(model: ModelProto) -> None:
    """Sets the opsets that are used, and the oldest IR that can hold them (8 at least)."""
    opset = opset_of(model)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    if not _uses_new_types(model.graph.initializer):
        model.ir_version = max(IR_VERSION, helper.find_min_ir_version_for(model.opset_import))


def _uses_new_types(tensors: Iterable[TensorProto]) -> bool:
    return any(tensor.data_type > TensorProto.BFLOAT16 for tensor in tensors)


_RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
}  # fmt: skip
# Where dropout and batch norms say their mode otherwise: by is_test, by how many outputs they have.
_DROPOUT_INPUT, _NORM_ATTRIBUTE, _TEST_ATTRIBUTE = 12, 14, 7
_NAMED = 3


def refuse_training_mode(graph: GraphProto, opset: int) -> None:
    """Raises InvalidNetwork where an output depends on a node that acts as in training.

    ``opset`` is the graph's. Nodes that no output needs are not looked at.
    """
    found = [
        f"{node.op_type} {node.name or node.output[0]!r}"
        for node in _needed(graph)
        if _trains(graph, node, opset)
    ]
    if found:
        more = len(found) - _NAMED
        raise InvalidNetwork(
            f"the network was exported in training mode: {', '.join(found[:_NAMED])}"
            + (f" and {more} more" if more > 0 else "")
            + " would give other labels in each run, or for each batch; call .eval() on it before"
            " the export (of TensorFlow: training=False), and leave random numbers out"
        )


def _needed(graph: GraphProto) -> list[NodeProto]:
    """Returns the nodes that the outputs are computed by, in the graph's order."""
    wanted = {output.name for output in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            nodes.append(node)
            wanted.update(node.input)
    return nodes[::-1]


def _trains(graph: GraphProto, node: NodeProto, opset: int) -> bool:
    if node.op_type in _RANDOM:
        return True
    if node.op_type not in ("Dropout", "BatchNormalization"):
        return False
    if opset < _TEST_ATTRIBUTE:
        return integers(node, "is_test", (0,)) == (0,)
    if node.op_type == "Dropout":
        said = node.input[2] if opset >= _DROPOUT_INPUT and len(node.input) > 2 else ""
        return bool(said) and _truth(graph, said)
    if opset >= _NORM_ATTRIBUTE:
        return integers(node, "training_mode", (0,)) != (0,)
    return len([name for name in node.output if name]) > 1


def _truth(graph: GraphProto, name: str) -> bool:
    """Returns a constant's value; what is computed, and may be true, is true."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return bool(numpy_helper.to_array(tensor).any())
    for node in graph.node:
        if name not in node.output:
            continue
        if node.op_type in ("Identity", "Cast"):
            return _truth(graph, node.input[0])
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            return bool(numpy_helper.to_array(helper.get_attribute_value(node.attribute[0])).any())
    return True
