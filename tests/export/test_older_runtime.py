"""Exported graphs load and give the same labels in the ONNX Runtime of 2024."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto

from export.onnx_import.network import ImportOptions, InputFormat, import_network
from export.onnx_import.source import read_network
from export.passes.build import build_model
from export.passes.onnx_graph import name_nodes
from export.precision.half import to_half
from export.precision.quantise import Recipe, calibrate, quantise
from export.symbols.find import PUBLISHED, NetworkSpec
from export.symbols.graph import Graph, read_symbol
from export.symbols.params import random_params
from export.symbols.sizes import retarget
from export.verify import example_images
from serving.imaging.geometry import Size
from serving.imaging.restore import labels_from_logits
from tests.support import run_onnx
from tests.support.foreign_graphs import write_mmdeploy
from tests.support.own_environment import make_environment
from tests.support.traced_networks import Wanted, trace_networks

VERSION = "1.19.2"
AGREEMENT = 0.9999
SIZE = (64, 96)
NETWORKS = ("icnet_resnet50_citys", "pspnet_resnet50_citys", "fcn_resnet50_citys",
            "deeplab_resnet50_citys")  # fmt: skip
OTHERS = {
    NetworkSpec("icnet_fast_seg", "resnet18", 0.25): SIZE,
    NetworkSpec("icnet_two_pass", "resnet18", 0.25): SIZE,
    NetworkSpec("icnet_paper", "resnet50", 0.25): (193, 225),
    NetworkSpec("deeplabv2", "resnet50", 0.25): SIZE,
    NetworkSpec("deeplabv3plus", "xception65", 0.25): SIZE,
    NetworkSpec("deeplabv3plus", "resnet18", 0.25): SIZE,
    NetworkSpec("deeplab_msra", "resnet50", 0.25): SIZE,
    NetworkSpec("deeplab_msra_dcn", "resnet50", 0.25): SIZE,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def older_python() -> Path:
    packages = ("numpy==1.26.4", f"onnxruntime=={VERSION}", "coloredlogs", "flatbuffers",
                "humanfriendly", "mpmath", "packaging", "protobuf<6", "sympy")  # fmt: skip
    return make_environment(f"onnxruntime-{VERSION}", *packages) / "python"


def run_older(python: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the folder's ``model.onnx`` on its ``images.npy``."""
    command = [python, run_onnx.__file__, "model.onnx", "images.npy", "outputs.npz"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def check(model: ModelProto, size: tuple[int, int], python: Path, folder: Path) -> None:
    """Loads, runs and compares a model with the ONNX Runtime of the tests."""
    assert model.ir_version == 8
    assert [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")] == [17]
    images = example_images(*size)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    np.save(folder / "images.npy", images)
    done = run_older(python, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == VERSION
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    wanted = dict(zip(names, session.run(names, {"image": images}), strict=True))
    with np.load(folder / "outputs.npz") as found:
        assert set(found.files) == set(wanted)
        if "mask" in wanted:
            assert (found["mask"] == wanted["mask"]).mean() >= AGREEMENT
        if "logits" in wanted:
            labels = [
                np.stack([labels_from_logits(x, Size(*size), Size(90, 130)) for x in logits])
                for logits in (found["logits"], wanted["logits"])
            ]
            assert (labels[0] == labels[1]).mean() >= AGREEMENT
        if "confidence" in wanted:
            difference = found["confidence"].astype(int) - wanted["confidence"]
            assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks(name: str, older_python: Path, tmp_path: Path) -> None:
    graph = retarget(read_symbol(PUBLISHED / f"{name}.json.gz"), *SIZE)
    model = build_model(graph, random_params(graph, *SIZE), *SIZE)
    check(model, SIZE, older_python, tmp_path)


@pytest.fixture(scope="module")
def others(tmp_path_factory, run_mxnet) -> dict[Wanted, Graph]:
    folder = tmp_path_factory.mktemp("symbols")
    return trace_networks(run_mxnet, folder, list(OTHERS.items()), 7)


@pytest.mark.parametrize(
    "network", OTHERS, ids=lambda network: f"{network.model}_{network.backbone}"
)
def test_other_networks(network: NetworkSpec, older_python, tmp_path, others) -> None:
    """Those without a published symbol, at a quarter of the channels."""
    size = OTHERS[network]
    graph = others[network, size]
    parameters = random_params(graph, *size, neutral=False)
    check(build_model(graph, parameters, *size, opset=17), size, older_python, tmp_path)


def test_imported_networks(older_python, tmp_path) -> None:
    source = read_network(write_mmdeploy(tmp_path / "source.onnx", aligned=True))
    options = ImportOptions(InputFormat((0.5,) * 3, (0.25,) * 3, 1), 5, SIZE)
    check(import_network(source, options).model, SIZE, older_python, tmp_path)


@pytest.mark.parametrize("heads", [("mask",), ("logits",), ("mask", "logits")])
def test_heads(heads, older_python, tmp_path, make_network, make_params) -> None:
    graph = make_network(*SIZE)
    check(build_model(graph, make_params(graph, *SIZE), *SIZE, heads), SIZE, older_python, tmp_path)


def test_deformable_networks_are_sampled(
    older_python, tmp_path, make_deformable_network, make_params
) -> None:
    """That runtime has no DeformConv; opset 17 writes it as GridSample."""
    graph = make_deformable_network(*SIZE)
    parameters = make_params(graph, *SIZE)
    check(build_model(graph, parameters, *SIZE, opset=17), SIZE, older_python, tmp_path)
    newer = build_model(graph, parameters, *SIZE)
    (tmp_path / "model.onnx").write_bytes(newer.SerializeToString())
    done = run_older(older_python, tmp_path)
    assert done.returncode
    assert "DeformConv" in done.stderr


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions(precision, older_python, tmp_path, make_network, make_params) -> None:
    graph = make_network(*SIZE)
    model = build_model(graph, make_params(graph, *SIZE), *SIZE)
    name_nodes(model)
    if precision == "fp16":
        model = to_half(model)
    else:
        recipe = Recipe()
        ranges = calibrate(model, list(example_images(*SIZE)), recipe.method)
        model = quantise(model, ranges, recipe)
    check(model, SIZE, older_python, tmp_path)
