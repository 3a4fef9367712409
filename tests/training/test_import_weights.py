"""Imported networks compute what the originals compute, from the photo on."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from click.testing import Result
from typer import Typer
from typer.testing import CliRunner

from tests.support.bundle_writer import write_bundle

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

from export.errors import WeightsError  # noqa: E402
from export.passes.build import build_model  # noqa: E402
from export.symbols.graph import read_symbol  # noqa: E402
from export.symbols.networks import IMAGENET, pixels_of  # noqa: E402
from export.symbols.params import read_params  # noqa: E402
from export.weights.cli import import_weights_command  # noqa: E402
from export.weights.files import read_arrays  # noqa: E402
from export.weights.importing import (  # noqa: E402
    SOURCES,
    ImportedWeights,
    build_symbol,
    fit_parameters,
    import_weights,
    read_imported,
)
from export.weights.sources import rename_tf_variable as rename  # noqa: E402
from serving.cli import SUMMARIES  # noqa: E402
from tests.support.tf_deeplab import TensorFlowDeepLab  # noqa: E402
from tests.support.torch_icnets import FastSegICNet, LiminnICNet, randomise  # noqa: E402
from training.trainers.network_symbol import trained_heads  # noqa: E402
from training.trainers.symbol_module import SymbolModule  # noqa: E402

CLASSES, WIDTH = 7, 0.25
SIZES = {"fast_seg": (128, 192), "liminn": (128, 192), "tf_deeplab": (129, 161)}
MOST = 1e-4

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mxnet") is None, reason="mxnet is not installed (extra 'training')"
)


def photo(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Smooth, so that means and channels matter; no two pixels alike."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = [np.sin(rows / 17 + c) + np.cos(columns / 23 - 2 * c) for c in range(3)]
    noise = np.random.default_rng(2).uniform(-20, 20, (*size, 3))
    return np.clip(np.stack(waves, -1) * 50 + (90, 120, 150) + noise, 0, 255).astype(np.uint8)


def served_logits(imported: ImportedWeights, image: npt.NDArray[np.uint8]) -> npt.NDArray:
    """Of the exported graph, its own normalisation included, ``[1,C,h,w]``."""
    graph = read_symbol(imported.params.with_name("network-symbol.json"))
    model = build_model(
        graph, read_params(imported.params), *image.shape[:2], ("logits",),
        pixels=pixels_of(imported.model, imported.backbone),
    )  # fmt: skip
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["logits"], {"image": image[None]})[0]


def exact_logits(imported: ImportedWeights, image: npt.NDArray[np.uint8]) -> npt.NDArray:
    """The imported symbol in float64, before its last resize."""
    graph = read_symbol(imported.params.with_name("network-symbol.json"))
    module = SymbolModule(graph.pruned(trained_heads(graph)[:1]), read_params(imported.params))
    seen = torch.from_numpy(image).double().permute(2, 0, 1)[None] * (2 / 255) - 1
    with torch.no_grad():
        return module.double().eval()(seen)[0].numpy()


def relative(found: npt.NDArray, expected: npt.NDArray) -> float:
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 1e-2, "a network that says nothing proves nothing"
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def icnets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[torch.nn.Module, Path]]:
    """The originals with random weights, and their files."""
    folder = tmp_path_factory.mktemp("pth")
    made = {}
    for name, kind in (("fast_seg", FastSegICNet), ("liminn", LiminnICNet)):
        network = randomise(kind(CLASSES, WIDTH))
        path = folder / f"{name}.pth"
        torch.save(network.state_dict(), path)
        made[name] = network, path
    return made


@pytest.mark.parametrize("name", ["fast_seg", "liminn"])
def test_icnet_of_pytorch_computes_the_same(icnets, tmp_path: Path, name: str) -> None:
    network, path = icnets[name]
    image = photo(SIZES[name])
    imported = import_weights(path, name, tmp_path, SIZES[name])
    assert (imported.backbone, imported.classes, imported.width) == ("resnet50", CLASSES, WIDTH)
    assert read_imported(tmp_path) == imported
    with torch.no_grad():
        expected = network(network.see(torch.from_numpy(image))).numpy()
    assert relative(served_logits(imported, image), expected) < MOST


@pytest.mark.parametrize("output_stride", [16, 8])
def test_deeplab_of_tensorflow_computes_the_same(tmp_path: Path, output_stride: int) -> None:
    network = TensorFlowDeepLab(CLASSES, WIDTH, output_stride)
    image = photo(SIZES["tf_deeplab"])
    with torch.no_grad():
        expected = network(image).numpy()
    slots = {
        "aspp0/weights/Momentum": network.variables["aspp0/weights"],
        "global_step": np.array(30000, np.int64),
    }
    path = tmp_path / "model.ckpt"
    if output_stride == 16:
        write_bundle(path, {**network.variables, **slots})
    else:
        path = tmp_path / "model.npz"
        np.savez(path, **network.variables)
    imported = import_weights(
        path, "tf_deeplab", tmp_path / "out", SIZES["tf_deeplab"], output_stride
    )
    assert (imported.backbone, imported.classes) == ("xception65", CLASSES)
    assert relative(exact_logits(imported, image), expected) < 1e-9
    # The original itself, in float32, is 3e-4 from what it is in float64.
    assert relative(served_logits(imported, image), expected) < 10 * MOST


def test_what_differs_between_icnets_matters(icnets, tmp_path: Path) -> None:
    """Each of the switches, left out, is seen: the comparison above is no accident."""
    network, path = icnets["fast_seg"]
    image = photo(SIZES["fast_seg"])
    imported = import_weights(path, "fast_seg", tmp_path, SIZES["fast_seg"])
    with torch.no_grad():
        expected = network(network.see(torch.from_numpy(image))).numpy()
    graph = read_symbol(imported.params.with_name("network-symbol.json"))
    weights = read_params(imported.params)
    model = build_model(graph, weights, *image.shape[:2], ("logits",), pixels=IMAGENET)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(["logits"], {"image": image[None]})[0]
    assert relative(found, expected) > 100 * MOST
    for change in (no_ceiling, first_blocks_undilated, swapped_pyramid):
        changed = change(network)
        with torch.no_grad():
            other = changed(network.see(torch.from_numpy(image))).numpy()
        assert relative(other, expected) > 10 * MOST, change.__name__


@pytest.mark.parametrize("name", ["fast_seg", "liminn"])
def test_names_and_shapes_of_the_published_width(name: str) -> None:
    """Of 19 classes and ResNet-50 as published; no array holds anything."""
    with torch.device("meta"):
        network = {"fast_seg": FastSegICNet, "liminn": LiminnICNet}[name](19, 1.0)
    arrays = {
        key: np.broadcast_to(np.float32(0), tuple(value.shape))
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    found = SOURCES[name].translate(arrays)
    assert (found.backbone, found.classes, found.width) == ("resnet50", 19, 1.0)
    graph, names = build_symbol(found, (64, 96), 16)
    parameters = fit_parameters(graph, names, found.arrays, (64, 96), Path("x.pth"))
    assert len(parameters.names()) == len(found.arrays)


def copied(network: FastSegICNet) -> FastSegICNet:
    other = FastSegICNet(CLASSES, WIDTH)
    other.load_state_dict(network.state_dict())
    return other.eval()


def no_ceiling(network: FastSegICNet) -> FastSegICNet:
    other = copied(network)
    other.backbone.maxpool.ceil_mode = False
    return other


def first_blocks_undilated(network: FastSegICNet) -> FastSegICNet:
    other = copied(network)
    conv = other.backbone.layer3[0].conv2
    conv.dilation = conv.padding = (1, 1)
    return other


def swapped_pyramid(network: FastSegICNet) -> FastSegICNet:
    other = copied(network)
    weight = other.backbone.head.bottleneck[0].weight
    half = weight.shape[1] // 2
    weight.data = torch.cat([weight[:, half:], weight[:, :half]], 1)
    return other


def test_training_scripts_wrappers_are_left_out(icnets, tmp_path: Path) -> None:
    network, plain = icnets["liminn"]
    wrapped = tmp_path / "checkpoint.pth.tar"
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 199, "state_dict": state}, wrapped)
    found, expected = read_arrays(wrapped), read_arrays(plain)
    assert found.keys() == expected.keys()
    assert not any(name.endswith("num_batches_tracked") for name in found)


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    marker = tmp_path / "executed"
    torch.save({"weights": Executed(marker)}, path)
    with pytest.raises(WeightsError, match="pickles are not executed here"):
        read_arrays(path)
    assert not marker.exists()
    path.write_bytes(b"not a file of PyTorch's")
    with pytest.raises(WeightsError, match=r"model\.pth"):
        read_arrays(path)


class Executed:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    ("source", "name", "told"),
    [
        ("fast_seg", "liminn", "psp_head.block.0.weight is missing"),
        ("liminn", "fast_seg", "are not those of a known ResNet"),
        ("gluoncv", "liminn", "save_parameters file of icnet, pspnet"),
        ("tf_deeplab", "liminn", "is not a variable of TensorFlow's DeepLab"),
    ],
)
def test_weights_of_another_network_are_refused(
    icnets, tmp_path: Path, source: str, name: str, told: str
) -> None:
    with pytest.raises(WeightsError, match=told):
        import_weights(icnets[name][1], source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_named(icnets, tmp_path: Path) -> None:
    network, _ = icnets["liminn"]
    state = dict(network.state_dict())
    del state["head.cff_24.conv_low.1.bias"]
    state["head.conv_cls.extra"] = torch.zeros(3)
    state["conv_sub1.0.conv.weight"] = torch.zeros(32, 4, 3, 3)
    path = tmp_path / "model.pth"
    torch.save(state, path)
    result = run(str(path), "--from", "liminn", "--size", "64x96", "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    told = result.output.replace("\n", "")
    assert "icnet_head_cff24_low_batchnorm0_beta is missing" in told
    assert "icnet_sub1_0_conv0_weight is (32, 4, 3, 3), the network has (32, 3, 3, 3)" in told
    assert "head.conv_cls.extra is unknown" in told
    assert not (tmp_path / "out").exists()


def test_the_command_is_listed() -> None:
    assert "import-weights" in SUMMARIES


def run(*arguments: str) -> Result:
    app = Typer()
    app.command()(import_weights_command)
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)


def test_the_command_tells_what_to_do_next(icnets, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(
        str(icnets["fast_seg"][1]), "--from", "fast_seg", "--size", "64x96", "--out", str(out)
    )
    assert result.exit_code == 0, result.output
    told = result.output.replace("\n", "")
    assert f"{out}/network.params: icnet_fast_seg resnet50, 7 classes" in told
    assert "sees BGR" in told
    assert "segserve export --model icnet_fast_seg --backbone resnet50 --width 0.25" in told
    facts = json.loads((out / "weights.json").read_text())
    assert facts["origin"].startswith("fast_seg fast_seg.pth sha256 ")
    result = run("nothing.pth", "--from", "fast_seg", "--out", str(out))
    assert result.exit_code == 1
    assert "nothing.pth does not exist" in result.output
    result = run("x.pth", "--from", "caffe", "--out", "o")
    assert "expected one of gluoncv, fast_seg" in result.output


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        (
            "xception_65/middle_flow/block1/unit_3/xception_module/"
            "separable_conv2_depthwise/depthwise_weights",
            "middle_flow_unit_3_separable_conv2_depthwise_weight",
        ),
        (
            "xception_65/entry_flow/block2/unit_1/xception_module/shortcut/BatchNorm/"
            "moving_variance",
            "entry_flow_block2_shortcut_BN_running_var",
        ),
        ("xception_65/entry_flow/conv1_1/weights", "entry_flow_conv1_1_weight"),
        ("decoder/feature_projection0/BatchNorm/beta", "feature_projection0_BN_beta"),
        ("decoder/decoder_conv1_pointwise/weights", "decoder_conv1_pointwise_weight"),
        ("logits/semantic/biases", "logits_semantic_bias"),
    ],
)
def test_names_of_tensorflow_become_the_symbols(variable: str, name: str) -> None:
    assert rename(variable) == name


def test_a_checkpoint_of_gluoncv_is_imported(run_script, tmp_path: Path) -> None:
    saved = tmp_path / "fcn.params"
    run_script("rename_parameters", saved, tmp_path / "renamed")
    imported = import_weights(saved, "gluoncv", tmp_path / "out", (64, 96))
    assert (imported.model, imported.backbone, imported.classes) == ("fcn", "resnet18", 7)
    assert (imported.width, imported.aux) == (0.25, False)
    found = read_params(imported.params)
    expected = read_params(tmp_path / "renamed/network.params")
    assert found.auxiliary.keys() == expected.auxiliary.keys()
    for name in expected.names():
        np.testing.assert_array_equal(found.find(name), expected.find(name))


def test_files_that_are_no_weights_are_named(tmp_path: Path) -> None:
    for name in ("x.h5", "x.params", "x.npz"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
            read_arrays(tmp_path / name)
