"""What the table of rewrites and settings rests on; no times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import typer
from onnx import TensorProto, helper
from typer import Typer
from typer.testing import CliRunner

from benchmarks.engines.graphs import plain_model
from benchmarks.studies import settings, winograd
from benchmarks.studies.peak import Peak, count_gmacs
from benchmarks.tables import winograd_table
from export.passes.build import build_model
from export.symbols.find import PUBLISHED
from export.symbols.graph import Graph, read_symbol
from export.symbols.params import Parameters, random_params
from export.symbols.sizes import retarget
from serving.engines.onnxruntime import session_options

SIZE = (64, 64)


@pytest.fixture(scope="module")
def symbol() -> Graph:
    return retarget(read_symbol(PUBLISHED / "icnet_resnet50_citys.json.gz"), *SIZE)


@pytest.fixture(scope="module")
def weights(symbol: Graph) -> Parameters:
    return random_params(symbol, *SIZE)


@pytest.fixture(scope="module")
def plain(symbol: Graph, weights: Parameters) -> onnx.ModelProto:
    return plain_model(symbol, weights, *SIZE)


@pytest.fixture(scope="module")
def ours(symbol: Graph, weights: Parameters) -> onnx.ModelProto:
    return build_model(symbol, weights, *SIZE)


def test_the_plain_graph_gives_the_same_labels(
    plain: onnx.ModelProto, ours: onnx.ModelProto
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)
    answers = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            ["mask"], {"image": image}
        )[0]
        for m in (plain, ours)
    ]
    assert answers[0].shape == (1, *SIZE)
    assert answers[0].dtype == np.uint8
    assert (answers[0] == answers[1]).mean() > 0.999
    assert len(np.unique(answers[0])) > 1


def test_the_plain_graph_is_not_rewritten(plain: onnx.ModelProto) -> None:
    operators = [node.op_type for node in plain.graph.node]
    assert "BatchNormalization" in operators
    assert operators.count("Div") == 2


def test_multiplications_are_those_of_the_published_table(
    plain: onnx.ModelProto, ours: onnx.ModelProto
) -> None:
    """128.7 GMAC at 1024x2048, a 512th of it at 64x64; but pooled maps are as large at any size."""
    pooled = (1 + 4 + 9 + 36) * 2048 * 512 / 1e9
    assert count_gmacs(plain) == pytest.approx((128.7 - pooled) / 512 + pooled, rel=0.01)
    assert count_gmacs(ours) < count_gmacs(plain)


def test_products_are_counted() -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [value("x", TensorProto.FLOAT, ["N", 1000, 2000])],
        [value("y", TensorProto.FLOAT, ["N", 1000, 500])],
        [helper.make_tensor("w", TensorProto.FLOAT, [2000, 500], np.zeros(10**6, np.float32))],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert count_gmacs(model) == pytest.approx(1.0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_setting_is_one_that_this_onnx_runtime_takes(precision: str) -> None:
    names = [variant.name for variant in settings.variants(precision, 2)]
    assert len(names) == len(set(names)) > 12
    for variant in settings.variants(precision, 2):
        options = session_options(variant.acceleration, 1, 1)
        if variant.change is not None:
            variant.change(options)
        # An unknown entry would pass; a malformed value does not.
        identity = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        )  # fmt: skip
        model = helper.make_model(
            identity, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


@pytest.mark.slow
def test_a_table_is_printed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSERVE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(settings, "measure_peak", lambda form, threads: Peak(form, {"a": 50.0}))
    app = Typer()
    app.command()(settings.main)
    line = "icnet_resnet50 --size 64x64 --threads 1 --turns 1 --only arena,plain --results"
    done = CliRunner().invoke(app, [*line.split(), str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "| no memory arena | " in done.output
    told = json.loads((tmp_path / "settings_icnet_resnet50_fp32_64x64.json").read_text())
    names = [row["name"] for row in told["rows"]]
    assert names == ["plain export, fp32, argmax at full size", "no memory arena"]
    assert told["share"]["share"] > 0
    assert told["peak"]["ways"] == {"a": 50.0}


def test_layers_are_measured_in_both_forms(tmp_path: Path) -> None:
    winograd.main("256x256@24x32, 8x4@5x6:2", turns=1, threads=1, results=tmp_path)
    told = json.loads((tmp_path / "winograd.json").read_text("utf-8"))
    assert [row["chosen"] for row in told["rows"]] == [True, False]
    assert max(row["difference"] for row in told["rows"]) < 1e-5
    table = winograd_table(tmp_path)
    assert table.count("\n| ") == 2
    assert "\n| 8x4@5x6:2 | " in table


def test_a_layer_must_be_one() -> None:
    with pytest.raises(typer.BadParameter, match="512x512@32x64:4"):
        winograd.read_layer("512x512")
