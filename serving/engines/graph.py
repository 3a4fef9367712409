"""Reads ONNX graphs of the contract and cuts them to the output that is wanted.

ONNX Runtime executes every node whichever outputs are fetched, so a mask head that nobody reads
would still cost its time.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from serving.engine import EngineSpec
from serving.errors import InvalidModel
from serving.imaging.geometry import Size

INPUT = "image"
LOGITS = "logits"
MASK = "mask"
CHANNELS = 3


def read_graph(path: Path) -> onnx.ModelProto:
    """Returns the whole graph of a ``model.onnx``.

    Raises:
        InvalidModel: not readable, or neither ``logits`` nor ``mask`` among its outputs.
    """
    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise InvalidModel(f"{path}: not a readable ONNX file: {error}") from None
    if not outputs_of(model):
        names = ", ".join(value.name for value in model.graph.output)
        raise InvalidModel(f"{path}: its outputs are: {names}; needed: {LOGITS} or {MASK}")
    return model


def outputs_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Returns which of ``logits`` and ``mask``, in this order, the graph has."""
    present = {value.name for value in model.graph.output}
    return tuple(name for name in (LOGITS, MASK) if name in present)


def cut_to(path: Path, model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """Returns the graph with one output, and nothing that this does not need.

    Raises:
        InvalidModel: it has no such output.
    """
    try:
        return cut_graph(model, output)
    except ValueError as error:
        raise InvalidModel(f"{path}: {error}") from None


def read_spec(
    path: Path, model: onnx.ModelProto, instances: int, max_batch_size: int
) -> EngineSpec:
    """Returns what an engine needs to know of a graph that is cut to ``logits``, or to ``mask``.

    Raises:
        InvalidModel: it is not of the contract; the message names what differs.
    """
    inputs = {value.name: value.type.tensor_type for value in model.graph.input}
    if set(inputs) != {INPUT}:
        raise InvalidModel(f"{path}: inputs are {sorted(inputs)}; the contract is one, {INPUT!r}")
    image = inputs[INPUT]
    shape = _static_shape(image)
    if image.elem_type != onnx.TensorProto.UINT8 or len(shape) != 4 or shape[3] != CHANNELS:
        raise InvalidModel(
            f"{path}: {INPUT} is {onnx.TensorProto.DataType.Name(image.elem_type)} {shape}; "
            f"the contract is UINT8 [N,H,W,3]: networks with other inputs are not served"
        )
    if not shape[1] or not shape[2]:
        raise InvalidModel(f"{path}: height and width of {INPUT} must be static, not {shape}")
    if shape[0] and (shape[0] != 1 or max_batch_size > 1):
        raise InvalidModel(
            f"{path}: {INPUT} is {shape}, a batch of exactly {shape[0]}, and max_batch_size is "
            f"{max_batch_size}; expected a symbolic N, or a batch of 1 and max_batch_size 1"
        )
    output = model.graph.output[0]
    result = _static_shape(output.type.tensor_type)
    types = onnx.TensorProto
    allowed = (types.FLOAT,) if output.name == LOGITS else (types.UINT8, types.UINT16)
    given = output.type.tensor_type.elem_type
    if given not in allowed:
        raise InvalidModel(
            f"{path}: {output.name} is {types.DataType.Name(given)}; the contract is "
            f"{' or '.join(map(types.DataType.Name, allowed))}"
        )
    logits_size, num_classes = None, 0
    if output.name == MASK and any(
        found not in (0, wanted) for found, wanted in zip(result[1:], shape[1:3], strict=False)
    ):
        raise InvalidModel(f"{path}: {MASK} is {result}, {INPUT} is {shape}: expected one size")
    if output.name == LOGITS:
        if len(result) != 4 or not all(result[1:]):
            raise InvalidModel(f"{path}: {LOGITS} must be [N,C,h,w] with static C, h, w: {result}")
        num_classes, logits_size = result[1], Size(result[2], result[3])
    return EngineSpec(
        size=Size(shape[1], shape[2]),
        num_classes=num_classes,
        logits_size=logits_size,
        max_batch_size=max_batch_size,
        instances=instances,
        precision=find_precision(model),
        wide=given == types.UINT16,
    )


def _static_shape(tensor: onnx.TypeProto.Tensor) -> list[int]:
    """Returns a tensor's dimensions, 0 where they are symbolic."""
    return [dimension.dim_value for dimension in tensor.shape.dim]


def cut_graph(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """Returns a copy with ``output`` as its only output, and without nodes and weights it does not
    need.

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
    """Returns ``int8`` with quantised nodes, ``fp16`` with half-precision weights, else
    ``fp32``."""
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    if any(i.data_type == onnx.TensorProto.FLOAT16 for i in model.graph.initializer):
        return "fp16"
    return "fp32"
