"""Deformable convolutions without DeformConv: sampled, then a convolution of one position."""

import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from export import cli
from export.errors import UnsupportedOperator
from export.passes.build import build_model
from export.passes.sample_deformable import sample_deformable
from export.symbols.graph import write_symbol
from export.symbols.params import write_params
from serving.models.repository import read_model

SIZE = (32, 48)
CHANNELS, FILTERS, INPUT, OUTPUT = 8, 6, (11, 14), (11, 14)


def deformable(shape=("N", CHANNELS, *INPUT), output=OUTPUT, **attributes):
    """One DeformConv with bias and mask whose offsets reach beyond the map."""
    random = np.random.default_rng(6)
    groups, offset_groups = attributes.get("group", 1), attributes.get("offset_group", 1)
    weights = [
        numpy_helper.from_array(random.normal(size=size).astype(np.float32), name)
        for name, size in (
            ("weight", (FILTERS, CHANNELS // groups, 3, 2)),
            ("bias", (FILTERS,)),
            ("turn", (12 * offset_groups, CHANNELS, 1, 1)),
            ("shade", (6 * offset_groups, CHANNELS, 1, 1)),
        )
    ]
    stride = attributes.get("strides", [1, 1])
    nodes = [
        helper.make_node("Conv", ["data", "turn"], ["offset"], name="turn", strides=stride),
        helper.make_node("Conv", ["data", "shade"], ["shares"], name="shade", strides=stride),
        helper.make_node(
            "DeformConv", ["data", "weight", "offset", "bias", "shares"], ["y"], name="bent",
            kernel_shape=[3, 2], **attributes,
        ),
    ]  # fmt: skip
    data = helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", FILTERS, *output])
    graph = helper.make_graph(nodes, "g", [data], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 0, 1, 1]},
        {"pads": [1, 0, 1, 1], "group": 2},
        {"pads": [1, 0, 1, 1], "offset_group": 4},
        {"pads": [2, 0, 2, 2], "dilations": [2, 2], "group": 2, "offset_group": 2},
        {"pads": [1, 0, 1, 1], "strides": [2, 2], "output": (6, 7)},
    ],
)
def test_equals_onnx_runtimes_own(run_onnx, attributes):
    model = deformable(**attributes)
    onnx.checker.check_model(model)
    values = np.random.default_rng(7).normal(size=(2, CHANNELS, *INPUT)).astype(np.float32)
    (expected,) = run_onnx(model, values)
    assert sample_deformable(model) == 1
    model.opset_import[0].version, model.ir_version = 17, 8
    onnx.checker.check_model(model, full_check=True)
    (found,) = run_onnx(model, values)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("size", [("H", "W"), ("H", 14), (11, "W")])
def test_open_sizes_are_refused(size):
    with pytest.raises(UnsupportedOperator, match="bent: sizes are not static"):
        sample_deformable(deformable(("N", CHANNELS, *size), size, pads=[1, 0, 1, 1]))


def test_networks_without_stay_as_they_are(make_network, make_params):
    graph = make_network(*SIZE)
    parameters = make_params(graph, *SIZE)
    plain, asked = (build_model(graph, parameters, *SIZE, opset=opset) for opset in (None, 17))
    assert plain == asked


def test_the_command_writes_opset_17(tmp_path, make_deformable_network, make_params, run_onnx):
    graph = make_deformable_network(*SIZE)
    parameters = make_params(graph, *SIZE)
    write_symbol(graph, tmp_path / "net-symbol.json")
    write_params(parameters, tmp_path / "net.params")
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli.export)

    def run(*arguments):
        given = ["--symbol", tmp_path / "net-symbol.json", "--params", tmp_path / "net.params",
                 "--pixels", "imagenet", "--no-verify",
                 "--repository", tmp_path / "repository"]  # fmt: skip
        return CliRunner().invoke(app, [*map(str, given), *arguments])

    assert run("--opset", "17").exit_code == 0
    path = read_model(tmp_path / "repository" / "net").graph(1)
    stored = onnx.load(str(path))
    assert (stored.opset_import[0].version, stored.ir_version) == (17, 8)
    passes = {entry.key: entry.value for entry in stored.metadata_props}["passes"].split(",")
    assert {"sample_deformable", "fold_batch_norm"} <= set(passes)
    image = np.random.default_rng(3).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    newer = build_model(graph, parameters, *SIZE)
    assert newer.opset_import[0].version == 19
    for found, expected in zip(run_onnx(stored, image), run_onnx(newer, image), strict=True):
        if found.dtype == np.uint8:
            assert (found == expected).mean() >= 0.9999
        else:
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    refused = run("--opset", "18")
    assert refused.exit_code == 1
    assert "expected 17 or 19" in refused.stderr
