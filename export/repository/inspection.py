"""Inspects a model of the repository: its contract, sizes, operations, parameters and origin.

ONNX files, and what ``segserve export --format mxnet`` writes; MXNet is not needed.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInput, ModelOutput

from export.errors import InvalidNetwork, UnsupportedOperator
from export.lowering.convert import BATCH, convert
from export.onnx_import.source import opset_of
from export.passes.onnx_graph import Shapes, copy_model, infer_shapes, integers
from export.repository.mxnet_model import PARAMS_FILE, network_alone
from export.symbols.graph import SYMBOL_FILE, read_symbol
from export.symbols.params import read_params
from serving.engines.graph import cut_graph, find_precision

# Their inputs 1 and 2 are scales and zero points, no parameters of the network.
_QUANTISERS = {"QuantizeLinear", "DequantizeLinear"}
_CONVOLUTIONS = {"Conv", "DeformConv"}


@dataclass(frozen=True)
class TensorFacts:
    """One input or output; symbolic dimensions are their names."""

    name: str
    type: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.type} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Inspection:
    """The facts of one model's file.

    Attributes:
        ir_version, opset: None for an MXNet graph.
        macs: multiplications of convolutions and matrix products for one image; None where ONNX
            does not infer a shape that they need.
        operators: how many nodes of each type, the most frequent first.
        served_output: what the embedded engine cuts the graph to; None where it does not
            follow the contract.
        served_nodes, served_macs: what is left then.
        passes: the rewrites that made the graph, where the file names them.
        metadata: everything else that the file says of itself.
    """

    path: str
    file_bytes: int
    producer: str
    ir_version: int | None
    opset: int | None
    precision: str
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    parameters: int
    nodes: int
    operators: dict[str, int]
    macs: int | None
    served_output: str | None
    served_nodes: int
    served_macs: int | None
    passes: tuple[str, ...]
    metadata: dict[str, str]


def inspect_file(path: Path) -> Inspection:
    """Reads an ONNX file. Raises InvalidNetwork where it is none."""
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf and the reader of external data differ
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidNetwork(f"{path}: not a readable ONNX file: {reason}") from error
    outputs = {output.name for output in model.graph.output}
    images = [v.type.tensor_type.elem_type for v in model.graph.input if v.name == "image"]
    ours = images == [TensorProto.UINT8]
    served = next((name for name in ("logits", "mask") if ours and name in outputs), None)
    cut = model if served is None else cut_graph(model, served)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    passes = metadata.pop("passes", "")
    constants = {tensor.name for tensor in model.graph.initializer}
    operators = Counter(node.op_type for node in model.graph.node)
    return Inspection(
        path=str(path),
        file_bytes=path.stat().st_size,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        ir_version=model.ir_version,
        opset=opset_of(model),
        precision=find_precision(model),
        inputs=tuple(_facts(v) for v in model.graph.input if v.name not in constants),
        outputs=tuple(_facts(v) for v in model.graph.output),
        parameters=count_parameters(model.graph),
        nodes=len(model.graph.node),
        operators=dict(operators.most_common()),
        macs=count_macs(model),
        served_output=served,
        served_nodes=len(cut.graph.node),
        served_macs=count_macs(cut),
        passes=tuple(part for part in passes.split(",") if part),
        metadata=metadata,
    )


def count_parameters(graph: GraphProto) -> int:
    """Returns the number of elements of all constants but shapes, scales and zero points."""
    excluded = {
        name for node in graph.node if node.op_type in _QUANTISERS for name in node.input[1:]
    }
    return sum(
        math.prod(tensor.dims)
        for tensor in graph.initializer
        if tensor.data_type != TensorProto.INT64 and tensor.name not in excluded
    )


def count_macs(model: ModelProto) -> int | None:
    """Returns multiplications for one image, of Conv, DeformConv, ConvTranspose, MatMul and
    Gemm."""
    probe = copy_model(model)
    for value in probe.graph.input:
        lengths = value.type.tensor_type.shape.dim
        if len(lengths) and not lengths[0].dim_value:
            lengths[0].dim_value = 1
    try:
        shapes = infer_shapes(probe)
    except Exception:  # a node is not what its operator says
        return None
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in probe.graph.initializer})
    total = 0
    for node in probe.graph.node:
        count = _node_macs(node, shapes)
        if count is None:
            return None
        total += count
    return total


def _node_macs(node: NodeProto, shapes: Shapes) -> int | None:
    if node.op_type not in _CONVOLUTIONS | {"ConvTranspose", "MatMul", "Gemm"}:
        return 0
    first, second = (shapes.get(name, ()) for name in node.input[:2])
    result = shapes.get(node.output[0], ())
    if not (first and second and result and all(first) and all(second) and all(result)):
        return None
    if node.op_type in _CONVOLUTIONS:  # weight [filters, channels / group, ...]
        return math.prod(result) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":  # weight [channels, filters / group, ...]
        return math.prod(first) * math.prod(second[1:])
    if node.op_type == "Gemm":
        return math.prod(result) * first[0 if integers(node, "transA", (0,)) == (1,) else 1]
    return math.prod(result) * first[-1]


def _facts(value: onnx.ValueInfoProto) -> TensorFacts:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return TensorFacts(value.name, TensorProto.DataType.Name(tensor.elem_type).lower(), shape)


_TYPE_NAMES = {model_config_pb2.TYPE_UINT8: "uint8", model_config_pb2.TYPE_FP32: "float"}


def inspect_mxnet(folder: Path, config: ModelConfig) -> Inspection:
    """Reads symbol and parameters of a version's ``folder``; ``config`` is its model's.

    Multiplications are those of the network between the normalised image and the logits.
    Raises InvalidNetwork where another program's model is there, InvalidSymbol and InvalidParams
    for damaged files or ones that do not fit each other.
    """
    symbol_file, params_file = folder / SYMBOL_FILE, folder / PARAMS_FILE
    if not symbol_file.is_file():
        raise InvalidNetwork(
            f"{folder} holds no {SYMBOL_FILE}: of the models of Triton's Python backend, those of"
            " `segserve export --format mxnet` alone can be inspected"
        )
    graph, parameters = read_symbol(symbol_file), read_params(params_file)
    height, width = _image_size(config)
    network = network_alone(graph)
    try:
        macs = count_macs(convert(network, parameters, height, width))
    except UnsupportedOperator:  # MXNet runs some that have no ONNX form
        macs = None
    own = set(network.variables())
    arrays = {**parameters.arguments, **parameters.auxiliary}
    return Inspection(
        path=str(symbol_file),
        file_bytes=symbol_file.stat().st_size + params_file.stat().st_size,
        producer="",
        ir_version=None,
        opset=None,
        precision="fp32",
        inputs=tuple(_config_facts(tensor, config) for tensor in config.input),
        outputs=tuple(_config_facts(tensor, config) for tensor in config.output),
        parameters=sum(array.size for name, array in arrays.items() if name in own),
        nodes=sum(1 for _ in graph.operators()),
        operators=dict(Counter(node.op for _, node in graph.operators()).most_common()),
        macs=macs,
        served_output=None,
        served_nodes=0,
        served_macs=None,
        passes=("prune_heads", "cut_at_logits"),
        metadata={},
    )


def _image_size(config: ModelConfig) -> tuple[int, int]:
    dims = tuple(config.input[0].dims)[-3:]
    if len(dims) != 3 or min(dims) < 1:
        raise InvalidNetwork(
            f"{config.name}: the image is {list(dims)} in config.pbtxt, not [H, W, 3]"
        )
    return dims[0], dims[1]


def _config_facts(tensor: ModelInput | ModelOutput, config: ModelConfig) -> TensorFacts:
    batch = (BATCH,) if config.max_batch_size > 0 else ()
    dims = tuple(BATCH if length < 0 else int(length) for length in tensor.dims)
    return TensorFacts(tensor.name, _TYPE_NAMES.get(tensor.data_type, "unknown"), (*batch, *dims))
