"""What a model that ``segserve export --format mxnet`` wrote holds; MXNet is not needed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInput, ModelOutput

from export.convert import BATCH, convert
from export.errors import InvalidNetwork, UnsupportedOperator
from export.inspection import Inspection, TensorFacts, count_macs
from export.mxnet_model import PARAMS_FILE, network_alone
from export.params import read_params
from export.symbol import SYMBOL_FILE, read_symbol

_TYPES = {model_config_pb2.TYPE_UINT8: "uint8", model_config_pb2.TYPE_FP32: "float"}


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
        inputs=tuple(_facts(tensor, config) for tensor in config.input),
        outputs=tuple(_facts(tensor, config) for tensor in config.output),
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


def _facts(tensor: ModelInput | ModelOutput, config: ModelConfig) -> TensorFacts:
    batch = (BATCH,) if config.max_batch_size > 0 else ()
    dims = tuple(BATCH if length < 0 else int(length) for length in tensor.dims)
    return TensorFacts(tensor.name, _TYPES.get(tensor.data_type, "unknown"), (*batch, *dims))
