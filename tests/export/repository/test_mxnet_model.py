"""MXNet models in a repository, without Triton (tests/triton has it)."""

import numpy as np
import pytest
import typer
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, TYPE_UINT8, ModelConfig
from typer.testing import CliRunner

from export import cli
from export.datasets import generic_labels
from export.errors import ExportError, IllegalSize, IncompatibleModel, InvalidParams
from export.passes.build import build_model
from export.repository.mxnet_model import write_mxnet_model
from export.repository.triton import ModelFacts, write_model
from export.symbols.graph import read_symbol, write_symbol
from export.symbols.networks import IMAGENET_MEAN, IMAGENET_STD, Pixels
from export.symbols.params import Parameters, read_params
from export.verify import example_images
from serving.errors import InvalidModel
from serving.imaging.geometry import Size
from serving.imaging.restore import confidence_from_logits
from serving.models.repository import read_model
from tests.support import run_mxnet_backend

SIZE = (32, 64)
FACTS = ModelFacts(generic_labels(5), "icnet", None, None, "a test")


@pytest.fixture
def network(make_network, make_params):
    graph = make_network(*SIZE)
    return graph, make_params(graph, *SIZE)


def config_of(folder):
    return text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), ModelConfig())


def test_writes_what_triton_needs(tmp_path, network):
    folder = write_mxnet_model(tmp_path, "net", *network, SIZE, FACTS)
    assert folder == tmp_path / "net" / "1"
    assert sorted(p.name for p in folder.iterdir()) == [
        "model.py", "network-symbol.json", "network.params"]  # fmt: skip
    config = config_of(tmp_path / "net")
    assert (config.backend, config.platform, config.max_batch_size) == ("python", "", 4)
    assert config.HasField("dynamic_batching")
    assert config.parameters["family"].string_value == "icnet"
    tensors = {t.name: (t.data_type, list(t.dims)) for t in (*config.input, *config.output)}
    assert tensors == {
        "image": (TYPE_UINT8, [32, 64, 3]),
        "mask": (TYPE_UINT8, [32, 64]),
        "logits": (TYPE_FP32, [5, 16, 32]),
    }
    variables = set(read_symbol(folder / "network-symbol.json").variables())
    assert variables == {"image", *read_params(folder / "network.params").names()}
    assert not any(name.startswith("aux_") for name in variables)  # the auxiliary head's


def test_the_embedded_server_refuses_it_with_a_remedy(tmp_path, network):
    write_mxnet_model(tmp_path, "net", *network, SIZE, FACTS)
    with pytest.raises(InvalidModel) as refused:
        read_model(tmp_path / "net")
    for part in ("net/config.pbtxt", "MXNet", "deploy/triton/start.py --mxnet", "--format mxnet"):
        assert part in str(refused.value)


@pytest.mark.parametrize("size", [SIZE, (64, 48)])
@pytest.mark.parametrize("heads", [("mask", "logits"), ("logits",), ("confidence", "mask")])
def test_model_py_computes_what_onnx_runtime_does(
    tmp_path, network, run_mxnet, run_onnx, size, heads
):
    write_mxnet_model(tmp_path, "net", *network, size, FACTS, heads=heads)
    images = example_images(*size)
    found = execute(run_mxnet, tmp_path / "net", images)
    mask, logits = run_onnx(build_model(*network, *size), images)
    confidence = [confidence_from_logits(x, Size(*size), Size(*size)) for x in logits]
    wanted = {"mask": mask, "logits": logits, "confidence": np.stack(confidence)}
    assert set(found) == {*(f"first_{h}" for h in heads), f"others_{heads[-1]}"}
    for name, array in found.items():
        request, _, tensor = name.partition("_")
        expected = wanted[tensor][:1] if request == "first" else wanted[tensor][1:]
        assert array.dtype == expected.dtype
        if tensor == "mask":
            assert (array == expected).mean() >= 0.9999
        elif tensor == "confidence":
            assert np.abs(array.astype(int) - expected).max() <= 1
        else:
            assert np.allclose(array, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_networks_that_want_blue_first(tmp_path, network, run_mxnet, run_onnx):
    pixels = Pixels(IMAGENET_MEAN[::-1], IMAGENET_STD[::-1], bgr=True)
    write_mxnet_model(tmp_path, "net", *network, SIZE, FACTS, 0, ("logits",), pixels)
    images = example_images(*SIZE)
    found = execute(run_mxnet, tmp_path / "net", images)
    model = build_model(*network, *SIZE, ("logits",))
    (wanted,) = run_onnx(model, np.ascontiguousarray(images[..., ::-1]))
    assert np.allclose(found["others_logits"], wanted[1:], atol=1e-4 * np.abs(wanted).max())


def test_onnx_is_no_next_version_of_mxnet(tmp_path, network):
    write_mxnet_model(tmp_path, "net", *network, SIZE, FACTS)
    with pytest.raises(IncompatibleModel, match=r"different format.*--name"):
        write_model(tmp_path, "net", build_model(*network, *SIZE), FACTS, None)
    assert write_mxnet_model(tmp_path, "net", *network, SIZE, FACTS).name == "2"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": (30, 64)}, IllegalSize, "nearest"),
        ({"heads": ("labels",)}, ExportError, "mask, confidence, logits"),
        ({"heads": ()}, ExportError, "expected one or more"),
        ({"parameters": Parameters({}, {})}, InvalidParams, "missing"),
    ],
)
def test_what_cannot_be_written_leaves_no_repository(tmp_path, network, change, error, message):
    graph, parameters = network
    given = {"parameters": parameters, "size": SIZE, **change}
    with pytest.raises(error, match=message):
        write_mxnet_model(tmp_path / "r", "net", graph, facts=FACTS, **given)
    assert not (tmp_path / "r").exists()


def execute(run_mxnet, folder, images):
    np.save(folder.parent / "images.npy", images)
    outputs = folder.parent / "outputs.npz"
    run_mxnet(run_mxnet_backend.__file__, folder, folder.parent / "images.npy", outputs)
    with np.load(outputs) as found:
        return dict(found)


@pytest.fixture
def run_export(tmp_path, network):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli.export)
    write_symbol(network[0], tmp_path / "network-symbol.json")

    def run(*arguments):
        given = ["--symbol", tmp_path / "network-symbol.json", "--format", "mxnet", *arguments]
        repository = ["--repository", tmp_path / "repository"]
        return CliRunner().invoke(app, [str(a) for a in (*given, *repository)])

    return run


def test_the_command_writes_it(tmp_path, run_export):
    result = run_export("--size", "64x48", "--head", "mask")
    assert result.exit_code == 0, result.output
    assert "network_mxnet version 1, 5 classes, 64x48, fp32, mask" in result.stdout
    config = config_of(tmp_path / "repository" / "network_mxnet")
    assert config.backend == "python"
    assert [o.name for o in config.output] == ["mask"]
    assert list(config.input[0].dims) == [64, 48, 3]


def test_the_command_refuses_other_precisions_and_formats(tmp_path, run_export):
    for arguments, message in (
        (["--precision", "fp16"], "--format mxnet is fp32"),
        (["--format", "tensorrt"], "expected onnx or mxnet"),
        (["--opset", "17"], "--opset 17 is for --format onnx"),
    ):
        result = run_export(*arguments)
        assert result.exit_code == 1
        assert message in result.stderr
    assert not (tmp_path / "repository").exists()
