"""Networks that do not give numbers are refused, wherever their labels would hide it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from click.testing import Result
from onnx import ModelProto, parser
from typer.testing import CliRunner

from export import cli
from export.finite import find_not_finite
from export.symbols.graph import Graph, write_symbol
from export.symbols.params import Parameters, write_params
from export.verify import telling_images
from tests.support.import_command import run_import
from tests.support.precision_model import write_scenes

SIZE = (32, 64)
IMAGES = {"ones": np.ones((1, 3, 8, 8), np.float32), "zeros": np.zeros((1, 3, 8, 8), np.float32)}
NORM = "y = BatchNormalization (c, one, nought, nought, spread)"


def make_model(*lines: str, output: str, constants: str = "") -> ModelProto:
    """A network of the lines, whose image is ``x`` float [N, 3, 8, 8]."""
    body = "\n".join(lines)
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 8, 8] x) => ({output})
    <float[3] one = {{1, 1, 1}}, float[3] nought = {{0, 0, 0}}, float[3] spread = {{1, -1, 1}},
     float[3, 3, 1, 1] w = {{1, 0, 0, 0, 1, 0, 0, 0, 1}}{constants}>
    {{ c = Conv (x, w)
    {body} }}"""
    model: ModelProto = parser.parse_model(text)
    onnx.checker.check_model(model)
    return model


SCORES = "float[N, 3, 8, 8] l"
LABELS = "int64[N, 8, 8] l"


@pytest.mark.parametrize(
    ("model", "blamed"),
    [
        (make_model(NORM, "l = ArgMax <axis = 1, keepdims = 0> (y)", output=LABELS),
         "BatchNormalization (output 'y') gives NaN for ones"),
        (make_model(NORM, "r = Relu (y)", "l = Conv (r, w)", output=SCORES),
         "BatchNormalization (output 'y') gives NaN for ones"),
        (make_model("y = Log (c)", "l = ArgMax <axis = 1, keepdims = 0> (y)", output=LABELS),
         "Log (output 'y') gives infinity for zeros"),
        (make_model("n = ReduceL2 <axes = [1]> (c)", "y = Div (c, n)",
                    "l = ArgMax <axis = 1, keepdims = 0> (y)", output=LABELS),
         "Div (output 'y') gives NaN for zeros"),
        (make_model("y = Reciprocal (c)", "t = Greater (y, half)", "l = Cast <to = 1> (t)",
                    output=SCORES, constants=", float half = {0.5}"),
         "Reciprocal (output 'y') gives infinity for zeros"),
        (make_model("l = Conv (c, broken)", output=SCORES, constants=(
            ", float[3, 3, 1, 1] broken = {1, 0, 0, nan, 1, 0, 0, 0, 1}")),
         "Conv (output 'l') gives NaN for ones (its weight 'broken' is not finite)"),
    ],
    ids=["argmax", "relu", "infinite scores", "black images alone", "threshold", "weight"],
)  # fmt: skip
def test_the_first_node_that_is_to_blame(model: ModelProto, blamed: str) -> None:
    found = find_not_finite(model, IMAGES)
    assert str(found) == blamed


@pytest.mark.parametrize(
    "model",
    [
        make_model("l = Relu (c)", output=SCORES),
        make_model("m = Where (flags, c, low)", "l = Softmax <axis = 3> (m)", output=SCORES,
                   constants=", bool[8] flags = {1, 1, 1, 1, 0, 0, 0, 0}, float low = {-inf}"),
        make_model("b = Mul (c, huge)", "e = Exp (b)", "f = Add (e, y)", "l = Div (y, f)",
                   output=SCORES, constants=", float huge = {1000}, float y = {1}"),
        make_model("m = Where (flags, c, low)", "s = Softmax <axis = 3> (m)", "n = IsNaN (s)",
                   "l = Where (n, zero, s)", output=SCORES,
                   constants=", bool[8] flags = {0, 0, 0, 0, 0, 0, 0, 0}, float low = {-inf},"
                             " float zero = {0}"),
    ],
    ids=["plain", "masked attention", "sigmoid by hand", "attention of nothing"],
)  # fmt: skip
def test_what_is_meant_is_left_alone(model: ModelProto) -> None:
    assert find_not_finite(model, IMAGES) is None


@pytest.mark.parametrize(("factor", "finite"), [(60000, True), (1, True), (-70000, False)])
def test_half_precision_is_counted_too(factor: int, finite: bool) -> None:
    model = make_model(
        "f = Mul (c, factor)", "h = Cast <to = 10> (f)", "l = ArgMax <axis = 1, keepdims = 0> (h)",
        output=LABELS, constants=f", float factor = {{{factor}}}",
    )  # fmt: skip
    found = find_not_finite(model, IMAGES)
    assert str(found) == ("None" if finite else "Cast (output 'h') gives infinity for ones")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_import_onnx_refuses_labels_of_nan(tmp_path: Path, precision: str) -> None:
    model = make_model(NORM, "l = ArgMax <axis = 1, keepdims = 0> (y)", output=LABELS)
    onnx.save(model, tmp_path / "net.onnx")
    run = partial(run_import, tmp_path / "models", tmp_path / "net.onnx", "--classes", "a,b,c",
                  "--mean", "0,0,0", "--std", "1,1,1", "--range", "1",
                  "--precision", precision)  # fmt: skip
    for checked in ("--verify", *(["--no-verify"] if precision == "fp16" else [])):
        result = run(checked)
        assert result.exit_code == 1
        assert "does not give numbers: BatchNormalization" in result.stderr
        assert "gives NaN for noise; nothing was written" in result.stderr
    assert not (tmp_path / "models").exists()


@pytest.fixture
def export(
    tmp_path: Path,
    make_network: Callable[[int, int], Graph],
    make_params: Callable[[Graph, int, int], Parameters],
) -> Callable[..., Result]:
    """``segserve export`` of a network, one of whose parameters holds ``value``."""

    def call(name: str, value: float, *arguments: object) -> Result:
        graph = make_network(*SIZE)
        parameters = make_params(graph, *SIZE)
        array = parameters.find(name)
        assert array is not None
        array.flat[0] = value
        write_symbol(graph, tmp_path / "net-symbol.json")
        write_params(parameters, tmp_path / "net.params")
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command()(cli.export)
        given = ["--symbol", tmp_path / "net-symbol.json", "--params", tmp_path / "net.params",
                 "--mean", "0,0,0", "--std", "1,1,1", "--repository", tmp_path / "models",
                 *arguments]  # fmt: skip
        return CliRunner().invoke(app, list(map(str, given)))

    return call


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", ["onnx", "mxnet"])
def test_export_names_the_parameters_that_are_not_finite(
    export: Callable[..., Result], tmp_path: Path, value: float, form: str
) -> None:
    result = export("score_bias", value, "--no-verify", "--format", form)
    assert result.exit_code == 1
    assert "net.params: score_bias holds NaN or infinity (1 of 14 parameters)" in result.stderr
    assert not (tmp_path / "models").exists()
    assert export("aux_weight", value, "--no-verify", "--format", form).exit_code == 0


@pytest.mark.parametrize("form", ["onnx", "mxnet"])
@pytest.mark.parametrize("heads", ["mask,logits", "mask"])
def test_export_names_the_symbols_node(
    export: Callable[..., Result], tmp_path: Path, heads: str, form: str
) -> None:
    result = export("small_bn_running_var", -1, "--head", heads, "--format", form)
    assert result.exit_code == 1
    assert "net-symbol.json does not give numbers: BatchNormalization 'small_bn'" in result.stderr
    assert "gives NaN for noise; nothing was written" in result.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("judged", [True, False])
@pytest.mark.parametrize("heads", ["mask,logits", "mask"])
def test_half_precision_that_overflows_is_refused(
    export: Callable[..., Result], tmp_path: Path, heads: str, judged: bool
) -> None:
    """Also where the labels hide it, and where no images judge it."""
    photos = ["--calibration", write_scenes(tmp_path / "photos")] if judged else []
    result = export("large_bn_gamma", 1e7, "--head", heads, "--precision", "fp16", "--no-verify",
                    *photos)  # fmt: skip
    assert result.exit_code == 1
    assert "the network in fp16 does not give numbers: Cast 'large_bn_half_cast'" in result.stderr
    assert "use --precision fp32" in result.stderr
    assert not (tmp_path / "models").exists()


def test_int8_of_a_network_that_gives_nan_is_refused(
    export: Callable[..., Result], tmp_path: Path
) -> None:
    result = export("small_bn_running_var", -1, "--head", "mask", "--precision", "int8",
                    "--no-verify", "--calibration", write_scenes(tmp_path / "photos"))  # fmt: skip
    assert result.exit_code == 1
    assert "the network in fp32 does not give numbers: BatchNormalization 'small_bn'" in (
        result.stderr
    )


def test_the_images_that_tell() -> None:
    images = telling_images(16, 24)
    assert {image.shape for image in images.values()} == {(1, 16, 24, 3)}
    assert not images["a black image"].any()
