"""The MXNet half of ``export.verify``, run as ``python -m export.verify_mxnet FOLDER``.

Reads ``symbol.json`` (outputs: the full-size map, the logits), ``network.params`` and
``images.npy`` (uint8 [n, H, W, 3]); writes ``logitsI.npy`` float32 and ``labelsI.npy`` uint8 for
each image, and prints MXNet's version.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from export.passes.fold_normalisation import IMAGENET_MEAN, IMAGENET_STD


def main(folder: Path) -> None:
    """Runs every image through the symbol on the CPU."""
    # MXNet 1.9.1 uses the alias that numpy 1.24 dropped.
    setattr(np, "bool", np.bool_)  # noqa: B010
    import mxnet as mx

    symbol = mx.sym.load(str(folder / "symbol.json"))
    arrays = mx.nd.load(str(folder / "network.params"))
    values = {name.partition(":")[2]: array for name, array in arrays.items()}
    images = np.load(folder / "images.npy")
    pixels = images.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255)
    mean = np.array(IMAGENET_MEAN, np.float32).reshape(1, 3, 1, 1)
    data = (pixels - mean) / np.array(IMAGENET_STD, np.float32).reshape(1, 3, 1, 1)
    values["data"] = mx.nd.array(data[:1])
    executor = symbol.bind(
        mx.cpu(),
        {name: values[name] for name in symbol.list_arguments()},
        aux_states={name: values[name] for name in symbol.list_auxiliary_states()},
        grad_req="null",
    )
    for number, image in enumerate(data):
        full, logits = executor.forward(is_train=False, data=mx.nd.array(image[None]))
        labels = full.asnumpy().argmax(1).astype(np.uint8)
        np.save(folder / f"logits{number}.npy", logits.asnumpy())
        np.save(folder / f"labels{number}.npy", labels)
    print(mx.__version__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
