import json

import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from export.datasets import generic_labels
from export.passes.build import build_model, set_metadata
from export.repository import cli as inspect_cli
from export.repository.inspection import count_macs, count_parameters, inspect_file
from export.repository.mxnet_model import write_mxnet_model
from export.repository.triton import ModelFacts, write_model
from export.symbols.networks import Pixels
from serving.cli import SUMMARIES, find_commands

SIZE = (32, 64)


@pytest.fixture
def run(tmp_path):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(inspect_cli.inspect)
    runner = CliRunner()

    def call(*arguments):
        return runner.invoke(app, [*map(str, arguments), "--repository", str(tmp_path)])

    return call


@pytest.fixture
def model(tmp_path, make_network, make_params):
    """A model of two versions in the repository."""
    graph = make_network(*SIZE)
    built = build_model(graph, make_params(graph, *SIZE), *SIZE)
    facts = ModelFacts(generic_labels(5), "icnet", "camvid", "40 % mIoU", "a test")
    set_metadata(built, {**facts.parameters(), "passes": "fold_batch_norm,mask_head"})
    write_model(tmp_path, "tiny", built, facts, None)
    write_model(tmp_path, "tiny", built, facts, None)
    return built


def test_shows_a_model_of_the_repository(run, model):
    result = run("tiny")
    assert result.exit_code == 0, result.output
    lines = dict(line.split(maxsplit=1) for line in reversed(result.stdout.splitlines()))
    assert lines["model"] == "tiny version 2 (served: 2), family icnet"
    assert lines["input"] == "image uint8 [N, 32, 64, 3]"
    assert lines["output"] == "mask uint8 [N, 32, 64]"
    assert lines["format"] == "opset 17, IR 8, fp32"
    assert lines["accuracy"] == "40 % mIoU"
    assert lines["provenance"] == "a test"
    assert lines["passes"] == "fold_batch_norm, mask_head"
    assert "cuts it to logits: 3 of" in lines["served"]
    assert "logits float [N, 5, 16, 32]" in result.stdout


def test_json_holds_the_same(run, model, tmp_path):
    result = run("tiny", "--json", "--version", 1)
    told = json.loads(result.stdout)
    assert told["repository"]["version"] == 1
    assert told["repository"]["classes"] == [f"class {i}" for i in range(5)]
    file = told["file"]
    assert file["file_bytes"] == (tmp_path / "tiny" / "1" / "model.onnx").stat().st_size
    assert file["macs"] == file["served_macs"] == count_macs(model)
    assert file["parameters"] == count_parameters(model.graph)
    assert file["operators"]["Conv"] == sum(n.op_type == "Conv" for n in model.graph.node)
    assert file["nodes"] - file["served_nodes"] == 3
    assert json.loads(run(tmp_path / "tiny", "--json").stdout)["repository"]["version"] == 2


def test_a_file_alone(run, tmp_path):
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 9, 9])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weight = numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [image], [result], [weight])
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph), str(path))
    found = run(path)
    assert found.exit_code == 0, found.output
    assert "not servable as is" in found.stdout
    assert f"{4 * 3 * 9 * 49 / 1e6:.3f} MMAC" in found.stdout
    assert inspect_file(path).parameters == 108


def operation(op, first, second, **attributes):
    """A model of one node on two inputs."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("a", first), ("b", second))
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node(op, ["a", "b"], ["y"], **attributes)
    return helper.make_model(
        helper.make_graph([node], "g", inputs, [output]),
        opset_imports=[helper.make_opsetid("", 17)],
    )


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        (operation("Conv", [1, 8, 10, 12], [6, 4, 3, 3], group=2), 6 * 8 * 10 * 4 * 9),
        (operation("Conv", [1, 2, 10, 10], [4, 2, 2, 2], strides=[2, 2]), 4 * 25 * 2 * 4),
        (operation("ConvTranspose", [1, 3, 5, 5], [3, 2, 4, 4], strides=[2, 2]), 75 * 2 * 16),
        (operation("MatMul", [2, 7, 5], [5, 3]), 2 * 7 * 3 * 5),
        (operation("Gemm", [7, 5], [5, 3]), 7 * 3 * 5),
        (operation("Gemm", [5, 7], [5, 3], transA=1), 7 * 3 * 5),
        (operation("Add", [5, 7], [5, 7]), 0),
        (operation("MatMul", ["n", "k"], ["k", 3]), None),
    ],
)
def test_macs(model, macs):
    assert count_macs(model) == macs


def test_scales_and_shapes_are_no_parameters():
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"]),
         helper.make_node("Reshape", ["d", "shape"], ["y"])],
        "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [6])],
        [numpy_helper.from_array(np.zeros((2, 3), np.int8), "w"),
         numpy_helper.from_array(np.ones(2, np.float32), "s"),
         numpy_helper.from_array(np.zeros(2, np.int8), "z"),
         numpy_helper.from_array(np.array([6]), "shape")],
    )  # fmt: skip
    assert count_parameters(graph) == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "is not a valid model"),
        ("absent.onnx", "does not exist"),
        ("damaged.onnx", "not a readable"),
    ],
)
def test_errors_are_one_line(run, tmp_path, name, message):
    (tmp_path / "damaged.onnx").write_bytes(b"\x08\x08no protobuf")
    result = run(tmp_path / name if name != "absent" else name)
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert message in line


def test_an_absent_version_is_refused(run, model):
    result = run("tiny", "--version", 7)
    assert "tiny has no version 7; it has 1, 2" in result.stderr


def test_the_commands_are_registered():
    assert {"import-onnx", "inspect"} <= set(find_commands()) & set(SUMMARIES)


@pytest.fixture
def mxnet_model(tmp_path, make_network, make_params):
    """A model of ``--format mxnet`` that wants blue first."""
    graph = make_network(*SIZE)
    facts = ModelFacts(generic_labels(5), "icnet", "camvid", None, "a test")
    pixels = Pixels(bgr=True)
    return write_mxnet_model(
        tmp_path, "net", graph, make_params(graph, *SIZE), SIZE, facts, pixels=pixels,
        heads=("mask", "logits", "confidence"),
    )  # fmt: skip


def test_an_mxnet_model(run, mxnet_model):
    result = run("net")
    assert result.exit_code == 0, result.output
    lines = dict(line.split(maxsplit=1) for line in reversed(result.stdout.splitlines()))
    assert lines["model"] == "net version 1 (served: 1), family icnet"
    assert lines["classes"].startswith("5: class 0")
    assert lines["input"] == "image uint8 [N, 32, 64, 3]"
    assert "logits float [N, 5, 16, 32]" in result.stdout
    assert "confidence uint8 [N, 32, 64]" in result.stdout
    assert lines["format"] == "MXNet, fp32"
    assert "Python backend alone" in lines["served"]
    assert lines["passes"] == "prune_heads, cut_at_logits"
    # Weights without the auxiliary head's, four arrays a batch norm, the classifier's biases.
    weights = 8 * 27 + 8 * 27 + 4 * 8 + 8 * 12 * 9 + 5 * 8
    assert lines["parameters"] == f"{weights + 2 * 4 * 8 + 5:,}"
    # Convolutions at 16x32, 8x16, 3x3, 8x16 and 16x32; pooling 8x16 to 8x3 to 3x3.
    convolutions = 512 * 8 * 27 + 128 * 8 * 27 + 9 * 4 * 8 + 128 * 8 * 12 * 9 + 512 * 5 * 8
    pooling = 8 * (8 * 3 * 16 + 3 * 3 * 8)
    told = json.loads(run("net", "--json").stdout)["file"]
    assert told["macs"] == convolutions + pooling
    assert (told["opset"], told["served_output"]) == (None, None)
    assert told["file_bytes"] == sum(
        (mxnet_model / name).stat().st_size for name in ("network-symbol.json", "network.params")
    )


def test_damaged_mxnet_models_are_one_line(run, mxnet_model):
    config, params = mxnet_model.parent / "config.pbtxt", mxnet_model / "network.params"
    told, whole = config.read_text(), params.read_bytes()
    params.write_bytes(whole[:-40])
    assert "net/1/network.params: " in run("net").stderr
    params.write_bytes(whole)
    config.write_text(told.replace("dims: 64", "dims: -1", 1))
    assert "the image is [32, -1, 3] in config.pbtxt" in run("net").stderr
    config.write_text(told)
    symbol = mxnet_model / "network-symbol.json"
    symbol.write_text(symbol.read_text().replace("image_", "other_"))
    assert "none of the nodes image_normalised" in run("net").stderr
    symbol.unlink()
    result = run("net")
    assert result.exit_code == 1
    assert "`segserve export --format mxnet` alone" in result.stderr
    config.write_text("backend {")
    assert "config.pbtxt: " in run("net").stderr
