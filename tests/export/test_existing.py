"""``segserve export --from``: a model of the repository in another precision."""

import numpy as np
import onnx
import onnxruntime
import pytest
import typer
from typer.testing import CliRunner

from export import cli
from export.errors import UnsupportedPrecision
from export.passes.build import build_model
from export.passes.onnx_graph import is_half, name_nodes
from export.precision.half import to_half, widen
from export.repository.triton import ModelFacts, onnx_files, write_version
from export.verify import example_images
from serving.engines.graph import find_precision
from serving.models.repository import read_model
from serving.palette import LabelSet
from tests.support.precision_model import write_scenes

SIZE = (64, 96)
LABELS = LabelSet(("road", "sky", "car", "tree", "pole"), tuple((i, i, i) for i in range(5)))


@pytest.fixture
def single(make_network, make_params):
    graph = make_network(*SIZE)
    model = build_model(graph, make_params(graph, *SIZE), *SIZE)
    name_nodes(model)
    return model


@pytest.fixture
def repository(tmp_path, single):
    """A repository with the small network in half precision."""
    folder = tmp_path / "repository"
    facts = ModelFacts(LABELS, "streets", None, "told", "made by hand", "tile", "0.25")
    write_version(folder, "tiny", onnx_files(to_half(single)), facts, 2)
    return folder


@pytest.fixture
def export(repository):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli.export)

    def call(*arguments):
        given = [*arguments, "--repository", repository]
        return CliRunner().invoke(app, [*map(str, given)])

    return call


def logits(model):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(["logits"], {"image": example_images(*SIZE)})[0]


def test_widening_keeps_the_weights_and_nothing_in_half_precision(single):
    half = to_half(single)
    before = half.SerializeToString()
    wide = widen(half)
    assert half.SerializeToString() == before
    assert (is_half(half), is_half(wide)) == (True, False)
    assert [n.op_type for n in wide.graph.node] == [n.op_type for n in single.graph.node]
    assert [*wide.graph.output] == [*single.graph.output]
    rounded = {
        t.name: onnx.numpy_helper.to_array(t).astype(np.float16).astype(np.float32)
        for t in single.graph.initializer
        if t.name.endswith("_weight")
    }
    found = {t.name.removesuffix("_half"): t for t in wide.graph.initializer}
    for name, values in rounded.items():
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(found[name]), values)
    expected = logits(single)
    np.testing.assert_allclose(logits(wide), expected, atol=0.01 * np.abs(expected).max())


def test_what_stays_in_half_precision_is_named(single):
    half = to_half(single)
    half.graph.output.append(
        onnx.helper.make_tensor_value_info("sum_half", onnx.TensorProto.FLOAT16, None)
    )
    with pytest.raises(UnsupportedPrecision, match="sum_half"):
        widen(half)


def test_half_precision_becomes_int8(export, repository, tmp_path):
    photos = write_scenes(tmp_path / "photos")
    result = export("--from", "tiny", "--precision", "int8", "--calibration", photos,
                    "--min-agreement", 90, "--family", "others")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "tiny_int8 version 1, 5 classes, 64x96, int8, mask,logits" in result.output
    found = read_model(repository / "tiny_int8")
    assert find_precision(onnx.load(found.graph(1))) == "int8"
    assert (found.labels, found.family) == (LABELS, "others")
    assert (found.resize, found.tile_overlap) == ("tile", 0.25)
    provenance = found.config.parameters["provenance"].string_value
    assert provenance.startswith("from tiny version 1 (fp16); made by hand; exported by segserve")
    assert "calibrated on" in provenance


def test_back_to_float32_by_the_models_folder(export, repository):
    result = export("--from", repository / "tiny", "--name", "wide")
    assert result.exit_code == 0, result.output
    assert find_precision(onnx.load(read_model(repository / "wide").graph(1))) == "fp32"
    # It is no next version of something else, but one of itself.
    assert export("--from", "wide", "--name", "wide").exit_code == 0
    assert read_model(repository / "wide").versions == (2,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "absent"], "--from absent is not a valid model"),
        (["--from", "tiny", "--model", "icnet"], "leave --model out"),
        (["--from", "tiny", "--size", "32x32"], "leave --size out"),
        (["--from", "tiny", "--rgb"], "leave --bgr or --rgb out"),
        (
            ["--from", "tiny", "--backbone", "resnet18", "--width", "1"],
            "leave --backbone, --width out",
        ),
        (["--from", "tiny", "--aux", "--output-stride", "8"], "leave --aux, --output-stride out"),
        (["--from", "tiny", "--pretrained", "absent"], "leave --pretrained out"),
        (["--from", "tiny", "--format", "mxnet"], "leave --format mxnet out"),
        (["--from", "tiny", "--head", "mask"], "keeps its outputs mask,logits"),
        (["--from", "tiny", "--precision", "int8"], "--calibration"),
    ],
)
def test_errors_are_one_line_with_a_remedy(export, repository, arguments, message):
    result = export(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert [p.name for p in repository.iterdir()] == ["tiny"]


def test_int8_is_no_start(export, repository, single):
    copy = onnx.ModelProto()
    copy.CopyFrom(single)
    copy.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.float32), "step"))
    copy.graph.node.append(
        onnx.helper.make_node("QuantizeLinear", ["logits", "step"], ["q"], name="q")
    )
    write_version(repository, "small", onnx_files(copy), ModelFacts(LABELS, "s", None, None, ""), 1)
    result = export("--from", "small")
    assert result.exit_code == 1
    assert "is already int8" in result.output


def test_the_next_version_keeps_how_the_server_resizes(repository, single):
    facts = ModelFacts(LABELS, "streets", None, None, "again")
    write_version(repository, "tiny", onnx_files(single), facts, None)
    found = read_model(repository / "tiny")
    assert (found.versions, found.resize, found.tile_overlap) == ((2,), "tile", 0.25)
    assert found.config.parameters["provenance"].string_value == "again"
