"""One repository of exported models, and one Triton that serves it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.datasets import find_labels
from export.passes.build import build_model
from export.passes.onnx_graph import name_nodes
from export.precision.quantise import Recipe, calibrate, quantise
from export.repository.mxnet_model import write_mxnet_model
from export.repository.triton import ModelFacts, write_model
from export.symbols.find import PUBLISHED
from export.symbols.graph import read_symbol
from export.symbols.params import Array, Parameters, random_params
from export.symbols.sizes import retarget
from export.verify import example_images
from tests.support.triton_server import Triton, install_triton, run_triton

SIZE = (64, 96)
SHIPPED = Path(__file__).parents[2] / "model_repository" / "icnet"


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``icnet`` for ONNX Runtime, ``icnet_mxnet`` and ``icnet_int8`` of the same weights,
    ``shipped`` where there is one, and small graphs that provoke the backend."""
    folder = tmp_path_factory.mktemp("triton") / "repository"
    graph = retarget(read_symbol(PUBLISHED / "icnet_resnet50_citys.json.gz"), *SIZE)
    weights = _lively(random_params(graph, *SIZE))
    labels = find_labels("citys", None)
    assert labels is not None
    facts = ModelFacts(labels, "icnet", "citys", None, "random weights")
    write_model(folder, "icnet", build_model(graph, weights, *SIZE), facts, None)
    write_mxnet_model(folder, "icnet_mxnet", graph, weights, SIZE, facts)
    images = list(example_images(*SIZE))
    single = build_model(graph, weights, *SIZE)
    name_nodes(single)
    ranges = calibrate(single, images, "minmax")
    write_model(folder, "icnet_int8", quantise(single, ranges, Recipe()), facts, None)
    for name in ("icnet", "icnet_mxnet"):
        _gather_batches(folder / name / "config.pbtxt")
    if SHIPPED.is_dir():
        shutil.copytree(SHIPPED, folder / "shipped")
        config = folder / "shipped" / "config.pbtxt"
        config.write_text(config.read_text().replace('name: "icnet"', 'name: "shipped"'))
    _write_lookup(folder / "lookup", "INT64")
    _write_lookup(folder / "mismatched", "INT32")
    _write_lookup(folder / "unconfigured", None)
    return folder


@pytest.fixture(scope="session")
def triton(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """The running server."""
    install_triton()
    with run_triton(repository, tmp_path_factory.mktemp("log") / "triton.log") as server:
        yield server


@pytest.fixture(scope="session")
def images() -> npt.NDArray[np.uint8]:
    """Eight different images of the network's size: noise on patches of colour."""
    generator = np.random.default_rng(5)
    patches = generator.integers(0, 200, (8, 4, 6, 3)).repeat(16, 1).repeat(16, 2)
    return (patches + generator.integers(0, 56, patches.shape)).astype(np.uint8)


def _lively(parameters: Parameters) -> Parameters:
    """The same weights with batch norms that are not neutral."""
    generator = np.random.default_rng(7)

    def vary(array: Array) -> Array:
        if array.ndim != 1:
            return array
        return (array + generator.uniform(-0.3, 0.3, array.shape)).astype(np.float32)

    return replace(
        parameters,
        arguments={name: vary(a) for name, a in parameters.arguments.items()},
        auxiliary={name: vary(a) for name, a in parameters.auxiliary.items()},
    )


def _gather_batches(path: Path) -> None:
    """Has the server wait for full batches, so that tests meet some."""
    config = text_format.Parse(path.read_text("utf-8"), ModelConfig())
    config.dynamic_batching.max_queue_delay_microseconds = 500_000
    config.dynamic_batching.preferred_batch_size.append(4)
    config.instance_group.add(count=1, kind="KIND_CPU")
    path.write_text(text_format.MessageToString(config, as_utf8=True), "utf-8")


def _write_lookup(folder: Path, input_type: str | None) -> None:
    """A graph that fails where an index is above 4; without type there is no configuration."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [5], [0.0, 10.0, 20.0, 30.0, 40.0])
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "index"], ["value"]),
            helper.make_node("Neg", ["value"], ["negative"]),
        ],
        "lookup",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["N", "K"])],
        [
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ["N", "K"]),
            helper.make_tensor_value_info("negative", TensorProto.FLOAT, ["N", "K"]),
        ],
        [table],
    )
    opset = [helper.make_opsetid("", 17)]
    (folder / "1").mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save(model, str(folder / "1" / "model.onnx"))
    if input_type is not None:
        (folder / "config.pbtxt").write_text(f"""
platform: "onnxruntime_onnx"
max_batch_size: 4
input {{ name: "index" data_type: TYPE_{input_type} dims: [ -1 ] }}
output {{ name: "value" data_type: TYPE_FP32 dims: [ -1 ] }}
output {{ name: "negative" data_type: TYPE_FP32 dims: [ -1 ] }}
dynamic_batching {{ max_queue_delay_microseconds: 500000 preferred_batch_size: 4 }}
instance_group {{ count: 1 kind: KIND_CPU }}
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
""")
