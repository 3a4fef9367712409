"""Symbol and parameters to an ONNX model with the network's own input and outputs."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from export.errors import InvalidParams, UnsupportedOperator
from export.lowering.context import LoweringContext
from export.lowering.convolutions import DEFORMABLE_IR_VERSION, DEFORMABLE_OPSET
from export.lowering.operators import lower, unsupported
from export.symbols.graph import Entry, Graph
from export.symbols.params import Parameters
from export.symbols.shape_rules import DEFORMABLE
from export.symbols.shapes import infer_shapes

OPSET = 17
IR_VERSION = 8
BATCH = "N"
DATA = "data"


def convert(
    graph: Graph, parameters: Parameters, height: int, width: int, opset: int | None = None
) -> ModelProto:
    """Converts every operator at one static image size.

    The model's input ``data`` is float32 [N, 3, height, width], normalised; its outputs are the
    graph's heads under their node's names, float32. Nodes and tensors keep the symbol's names.
    Opset 17, IR 8; a deformable convolution needs opset 19, IR 9. ``opset`` 17 writes the other
    nodes for 17 all the same: what is left to do is ``export.passes.sample_deformable``.
    Raises UnsupportedOperator naming all unknown operators, InvalidParams where parameters are
    missing or have other shapes, and what ``infer_shapes`` raises.
    """
    unknown = unsupported([node.op for _, node in graph.operators()])
    if unknown:
        raise UnsupportedOperator(
            f"no conversion for the operators {', '.join(unknown)}; export a network without them"
        )
    shapes = infer_shapes(graph, height, width)
    _check_parameters(parameters, dict(shapes.parameters))
    data = graph.data_input()
    names = _unique_names(graph)
    deforms = any(node.op in DEFORMABLE for _, node in graph.operators())
    own_opset = DEFORMABLE_OPSET if deforms else OPSET
    tensors = {Entry(i): n.name for i, n in enumerate(graph.nodes) if n.is_variable}
    tensors[Entry(data)] = DATA
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []
    for index, node in graph.operators():
        inputs = [entry for entry in node.inputs if entry in shapes.entries]
        outputs = [Entry(index, n) for n in range(shapes.outputs(index))]
        context = LoweringContext(
            node,
            names[index],
            tuple(tensors[entry] for entry in inputs),
            tuple(map(shapes.of, inputs)),
            tuple(map(shapes.of, outputs)),
            tuple(map(shapes.open_shape, inputs)),
            tuple(map(shapes.open_shape, outputs)),
            opset or own_opset,
        )
        lowering = lower(context)
        nodes.extend(lowering.nodes)
        constants.extend(lowering.constants)
        tensors |= zip(outputs, (lowering.output, *lowering.later), strict=True)
    used = {name for node in nodes for name in node.input}
    for name in shapes.parameters:
        array = parameters.find(name)
        if name in used and array is not None:
            constants.append(numpy_helper.from_array(array.astype(np.float32), name))
    heads: list[ValueInfoProto] = []
    for number, head in enumerate(graph.heads):
        name = tensors[head]
        if name == DATA or name in [h.name for h in heads]:  # an output must be a node's own
            nodes.append(
                helper.make_node("Identity", [name], [f"output{number}"], f"output{number}")
            )
            name = f"output{number}"
        shape = [BATCH, *shapes.of(head)[1:]]
        heads.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    image = helper.make_tensor_value_info(DATA, TensorProto.FLOAT, [BATCH, 3, height, width])
    model: ModelProto = helper.make_model(
        helper.make_graph(nodes, "network", [image], heads, constants),
        opset_imports=[helper.make_opsetid("", own_opset)],
        ir_version=DEFORMABLE_IR_VERSION if deforms else IR_VERSION,
        producer_name="segserve",
    )
    return model


def _check_parameters(parameters: Parameters, shapes: dict[str, tuple[int, ...]]) -> None:
    missing = [name for name in shapes if parameters.find(name) is None]
    if missing:
        names = parameters.names()
        structural = any("." in name for name in names)
        raise InvalidParams(
            f"{len(missing)} of {len(shapes)} parameters are missing, first {missing[0]!r}"
            + (
                f"; the file has structural names ({names[0]!r}) as save_parameters() writes them:"
                " save it with HybridBlock.export(), or rename them with"
                " python -m training.networks.tracing --params"
                if structural
                else "; do symbol and parameters belong together?"
            )
        )
    for name, shape in shapes.items():
        array = parameters.find(name)
        if array is not None and array.shape != shape:
            raise InvalidParams(
                f"{name} is {array.shape} in the parameters, {shape} in the symbol; do the number"
                " of classes and the width agree?"
            )


def _unique_names(graph: Graph) -> dict[int, str]:
    """Returns the operators' names, suffixed where a symbol uses one twice or a variable has it."""
    taken = {DATA, *graph.variables()}
    names = {}
    for index, node in graph.operators():
        name, number = node.name, 1
        while name in taken:
            number += 1
            name = f"{node.name}_{number}"
        taken.add(name)
        names[index] = name
    return names
