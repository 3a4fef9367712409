"""One training step of a small ICNet in MXNet, float64, dropout off.

``one_step.py FOLDER``: reads ``batch.npz`` (images, labels), writes ``network-symbol.json``,
``before.params`` and ``step.npz``: the loss, each gradient, and the running statistics after.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from export.mxnet_import import mx
from training.networks import build
from training.networks.tracing import write_parameters, write_symbol
from training.trainers.gluon_trainer import CascadeLoss
from training.transforms import subsample_labels


def switch_dropout_off(block: mx.gluon.Block) -> None:
    if isinstance(block, mx.gluon.nn.Dropout):
        block._rate = 0.0
    for child in block._children.values():
        switch_dropout_off(child)


def main(folder: Path) -> None:
    with np.load(folder / "batch.npz") as given:
        images, labels, weights = given["images"], given["labels"], given["weights"]
    size = images.shape[2:]
    mx.random.seed(3)
    network = build("icnet", "resnet18", len(weights), *size, channel_multiplier=0.25)
    network.initialize(mx.init.MSRAPrelu(slope=0))
    switch_dropout_off(network)
    write_symbol(network, folder / "network-symbol.json", *size)
    write_parameters(network, folder / "before.params")
    network.full_output = False
    network.cast("float64")
    network.hybridize()
    loss = CascadeLoss((1.0, 0.4, 0.4), weights)
    loss.initialize()
    loss.cast("float64")
    with mx.autograd.record():
        maps = network(mx.nd.array(images, dtype="float64"))
        targets = [
            mx.nd.array(subsample_labels(labels, *m.shape[2:]), dtype="float64") for m in maps
        ]
        value = loss(*maps, *targets)
    value.backward()
    mx.nd.waitall()
    arrays = {"loss": value.asnumpy(), "logits": maps[0].asnumpy()}
    for name, parameter in network.collect_params().items():
        if parameter.grad_req == "null":
            arrays[f"state:{name}"] = parameter.data().asnumpy()
        else:
            arrays[f"grad:{name}"] = parameter.grad().asnumpy()
    np.savez(folder / "step.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
