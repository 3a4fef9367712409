"""Networks that were exported in training mode are refused; the same ones after eval() are not."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, parser

from tests.support.import_command import run_import

FIVE = ("--classes", "a,b,c", "--mean", "0,0,0", "--std", "1,1,1", "--range", "1")


def make_model(*lines: str, opset: int = 17, constants: str = "") -> ModelProto:
    body = "\n".join(lines)
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    g (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] l)
    <float[3] one = {{1, 1, 1}}, float[3] nought = {{0, 0, 0}}, float ratio = {{0.5}},
     float[3, 3, 1, 1] w = {{1, 0, 0, 0, 1, 0, 0, 0, 1}}{constants}>
    {{ c = Conv (x, w)
    {body} }}"""
    model: ModelProto = parser.parse_model(text)
    return model


ON, OFF = ", bool training = {1}", ", bool training = {0}"
REFUSED = {
    "dropout": make_model("d = Dropout (c, ratio, training)", "l = Relu (d)", constants=ON),
    "computed": make_model(
        "t = Constant <value = bool {1}> ()", "i = Identity (t)", "l = Dropout (c, ratio, i)"
    ),
    "batch norm": make_model(
        "l, m, v = BatchNormalization <training_mode = 1> (c, one, nought, nought, one)"
    ),
    "older batch norm": make_model(
        "l, m, v, sm, sv = BatchNormalization (c, one, nought, nought, one)", opset=11
    ),
    "bernoulli": make_model("r = Bernoulli (c)", "l = Mul (c, r)"),
    "stochastic depth": make_model(
        "r = RandomUniform <shape = [1, 1, 1, 1]> ()", "f = Floor (r)", "l = Mul (c, f)"
    ),
    "noise": make_model("r = RandomNormalLike (c)", "l = Add (c, r)"),
    "uniform noise": make_model("r = RandomUniformLike (c)", "l = Add (c, r)"),
    "drawn": make_model(
        "f = Flatten <axis = 1> (c)", "i = Multinomial (f)", "t = Cast <to = 1> (i)",
        "l = Add (c, t)",
    ),
    "normal": make_model("r = RandomNormal <shape = [1, 3, 8, 8]> ()", "l = Add (c, r)"),
}  # fmt: skip
TAKEN = {
    "dropout": make_model("d = Dropout (c, ratio, training)", "l = Relu (d)", constants=OFF),
    "dropout without a mode": make_model("d = Dropout (c, ratio)", "l = Relu (d)"),
    "older dropout": make_model("d = Dropout <ratio = 0.5> (c)", "l = Relu (d)", opset=11),
    "batch norm": make_model("l = BatchNormalization (c, one, nought, nought, one)"),
    "older batch norm": make_model(
        "l = BatchNormalization (c, one, nought, nought, one)", opset=11
    ),
    "nobody needs it": make_model("r = RandomNormalLike (c)", "e = Add (c, r)", "l = Relu (c)"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("checked", ["--verify", "--no-verify"])
def test_training_mode_is_refused(tmp_path: Path, name: str, checked: str) -> None:
    onnx.save(REFUSED[name], tmp_path / "net.onnx")
    result = run_import(tmp_path / "models", tmp_path / "net.onnx", *FIVE, checked)
    assert result.exit_code == 1
    assert "the network was exported in training mode: " in result.stderr
    assert ".eval()" in result.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", TAKEN)
def test_evaluation_mode_is_taken(tmp_path: Path, name: str) -> None:
    onnx.save(TAKEN[name], tmp_path / "net.onnx")
    result = run_import(tmp_path / "models", tmp_path / "net.onnx", *FIVE)
    assert result.exit_code == 0, result.output


def test_few_nodes_are_named(tmp_path: Path) -> None:
    read = ["c", "d0", "d1", "d2", "d3"]
    lines = [f"d{i} = Dropout ({name}, ratio, training)" for i, name in enumerate(read)]
    model = make_model(*lines, "l = Relu (d4)", constants=ON)
    for node in model.graph.node:
        node.name = f"node of {node.output[0]}"
    onnx.save(model, tmp_path / "net.onnx")
    result = run_import(tmp_path / "models", tmp_path / "net.onnx", *FIVE)
    named = ", ".join(f"Dropout 'node of d{i}'" for i in range(3))
    assert f"{named} and 2 more would give" in result.stderr
