"""Networks of other people's kinds, from symbol to the served graph, against MXNet. Run as a
script, this file is MXNet's half."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from export.lowering.convert import convert
from export.passes.build import build_model, prune_heads
from export.repository.mxnet_model import mxnet_files
from export.symbols.graph import read_symbol
from export.symbols.params import read_params
from export.symbols.sizes import retarget
from tests.support.network_symbols import CLASSES, NETWORKS, SIZE

# Their scores are one channel, for the foreground.
BINARY = ("binary_unet",)


@pytest.fixture(scope="module")
def mxnet_results(tmp_path_factory, run_mxnet):
    folder = tmp_path_factory.mktemp("networks")
    run_mxnet(__file__, folder)
    return folder


def read_network(name, folder):
    """Symbol, parameters, images [2, H, W, 3], normalised data, and MXNet's output."""
    parts = (np.load(folder / f"{name}-{part}.npy") for part in ("image", "data", "output"))
    symbol = read_symbol(folder / f"{name}.json")
    return symbol, read_params(folder / f"{name}.params"), *parts


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_computes_what_mxnet_does(name, mxnet_results, run_onnx):
    symbol, parameters, _, data, expected = read_network(name, mxnet_results)
    (found,) = run_onnx(convert(prune_heads(symbol), parameters, *SIZE), data)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("opset", [None, 17])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_served_labels_are_mxnets(name, mxnet_results, run_onnx, opset):
    symbol, parameters, images, _, expected = read_network(name, mxnet_results)
    model = build_model(symbol, parameters, *SIZE, opset=opset)
    mask, logits = run_onnx(model, images)
    classes = 2 if name in BINARY else CLASSES
    assert mask.shape == (2, *SIZE)
    assert logits.shape[1] == classes
    labels = expected[:, 0] > 0.5 if name in BINARY else expected.argmax(1)
    assert len(np.unique(labels)) > 1
    assert (mask == labels).mean() >= 0.999


@pytest.mark.parametrize("name", ["danet", "resnest_deeplab", "binary_unet", "fapn"])
def test_is_written_for_mxnet_too(name, mxnet_results, tmp_path):
    """Writing has MXNet run it once, in a process of its own: hence not all of them."""
    symbol, parameters, *_ = read_network(name, mxnet_results)
    mxnet_files(symbol, parameters, *SIZE).write(tmp_path)
    assert read_symbol(tmp_path / "network-symbol.json").heads


def test_a_network_with_inner_resizes_keeps_its_size(mxnet_results):
    """It ends in a deconvolution, so only the size that it was built for is known to fit."""
    symbol = read_symbol(mxnet_results / "linknet.json")
    assert retarget(symbol, *SIZE) is symbol
    assert retarget(symbol, 128, 96) is symbol  # no size stands in it


def main(folder: Path) -> None:
    import export.mxnet_import  # noqa: F401  (repairs NumPy for MXNet)
    from export.symbols.params import random_params, write_params
    import mxnet as mx  # isort: skip

    generator = np.random.default_rng(0)
    for name, build in NETWORKS.items():
        symbol = build(mx, mx.sym.var("data"))
        symbol.save(str(folder / f"{name}.json"))
        graph = read_symbol(folder / f"{name}.json")
        images = generator.integers(0, 256, (2, 8, 12, 3)).repeat(8, 1).repeat(8, 2)
        images = (images // 2 + generator.integers(0, 128, images.shape)).astype(np.uint8)
        mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
        data = ((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
        for seed in range(3, 20):
            parameters = random_params(graph, *SIZE, seed=seed, neutral=False)
            write_params(parameters, folder / f"{name}.params")
            values = {
                key.partition(":")[2]: array
                for key, array in mx.nd.load(str(folder / f"{name}.params")).items()
            }
            values["data"] = mx.nd.array(data)
            if "softmax_label" in symbol.list_arguments():
                channels = (1,) if name in BINARY else ()
                values["softmax_label"] = mx.nd.zeros((2, *channels, *SIZE))
            executor = symbol.bind(
                mx.cpu(),
                {key: values[key] for key in symbol.list_arguments()},
                aux_states={key: values[key] for key in symbol.list_auxiliary_states()},
                grad_req="null",
            )
            output = executor.forward(is_train=False)[0].asnumpy()
            winners = output > 0.5 if name in BINARY else output.argmax(1)
            if len(np.unique(winners)) > 1:  # weights under which labels tell something
                break
        np.save(folder / f"{name}-image.npy", images)
        np.save(folder / f"{name}-data.npy", data.astype(np.float32))
        np.save(folder / f"{name}-output.npy", output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
