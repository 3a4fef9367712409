"""Facts about the networks: writes them to the folder named by the argument, as JSON and npz."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from network_facts import differences, refusal, shapes, vary_norms

from export.mxnet_import import mx
from training.networks import build
from training.networks.icnet import ICNet
from training.networks.layers import Norm
from training.networks.tracing import read_parameters, write_parameters, write_symbol

HEIGHT, WIDTH, CLASSES = 64, 96, 19


def blocks(network: mx.gluon.Block) -> Iterator[mx.gluon.Block]:
    yield network
    for child in network._children.values():
        yield from blocks(child)


def compare_with_gluoncv(image: mx.nd.NDArray, folder: Path) -> dict[str, object]:
    from benchmarks.gluoncv_import import import_gluoncv

    reference = import_gluoncv("model_zoo.icnet").ICNet(
        CLASSES, backbone="resnet50", pretrained_base=False, height=HEIGHT, width=WIDTH
    )
    reference.initialize(mx.init.Xavier(), force_reinit=True)
    reference(image)
    vary_norms(reference)
    ours = build("icnet", "resnet50", CLASSES, HEIGHT, WIDTH)
    reference.save_parameters(str(folder / "reference.params"))
    ours.load_parameters(str(folder / "reference.params"))
    return {
        "same_names_and_shapes": shapes(ours) == shapes(reference),
        **differences(ours, reference, image),
    }


def small_network(norm: Norm | None = None) -> ICNet:
    return build("icnet", "resnet18", 11, HEIGHT, WIDTH, norm, 0.5)


def inspect_norms() -> dict[str, object]:
    sync = mx.gluon.contrib.nn.SyncBatchNorm
    network = small_network(Norm(sync, num_devices=3))
    found = [block for block in blocks(network) if isinstance(block, mx.gluon.nn.BatchNorm)]
    return {
        "layers": len(found),
        "synchronised": sum(isinstance(block, sync) for block in found),
        "devices": sorted({block._kwargs["ndev"] for block in found if isinstance(block, sync)}),
        "running_means": sum(name.endswith("running_mean") for name in network.collect_params()),
    }


def save_and_load(image: mx.nd.NDArray, folder: Path) -> dict[str, object]:
    network = small_network()
    network.initialize(mx.init.MSRAPrelu(slope=0))
    vary_norms(network)
    counted = sum(math.prod(p.shape) for p in network.collect_params().values())
    outputs = [output.asnumpy() for output in network(image)]
    write_symbol(network, folder / "network-symbol.json", HEIGHT, WIDTH)
    write_parameters(network, folder / "network.params")
    block = mx.gluon.SymbolBlock.imports(
        str(folder / "network-symbol.json"), ["data"], str(folder / "network.params")
    )
    from_file = [output.asnumpy() for output in block(image)]
    network.full_output = False
    network.hybridize(static_alloc=True, static_shape=True)
    low = [output.asnumpy() for output in network(image)]
    other = small_network()
    other.initialize()
    read_parameters(other, folder / "network.params", [mx.cpu()])
    wider = build("icnet", "resnet18", 11, HEIGHT, WIDTH)
    return {
        "parameters": counted,
        "symbol_difference": max(
            float(np.abs(a - b).max()) for a, b in zip(outputs, from_file, strict=True)
        ),
        "low_outputs": len(low),
        "low_difference": max(
            float(np.abs(a - b).max()) for a, b in zip(outputs[1:], low, strict=True)
        ),
        "reload_difference": float(np.abs(other(image)[0].asnumpy() - outputs[0]).max()),
        "misfit": refusal(lambda: read_parameters(wider, folder / "network.params", [mx.cpu()])),
        "no_file": refusal(lambda: read_parameters(wider, folder / "none.params", [mx.cpu()])),
    }


def main() -> None:
    mx.random.seed(3)
    image = mx.nd.array(np.random.default_rng(1).normal(size=(1, 3, HEIGHT, WIDTH)))
    with tempfile.TemporaryDirectory() as folder:
        facts = {
            "gluoncv": compare_with_gluoncv(image, Path(folder)),
            "norms": inspect_norms(),
            "files": save_and_load(image, Path(folder)),
            "refusals": {
                "size": refusal(lambda: build("icnet", "resnet18", 11, 360, 480)),
                "small": refusal(lambda: build("icnet", "resnet18", 11, 10, 64)),
                "model": refusal(lambda: build("unet", "resnet18", 11, 64, 96)),
                "backbone": refusal(lambda: build("icnet", "vgg16", 11, 64, 96)),
            },
        }
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
