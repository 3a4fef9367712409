"""The MXNet half of ``export.verify``, run as ``python -m export.verify_mxnet FOLDER``.

Reads ``symbol.json`` (outputs: the full-size map, the logits), ``network.params``,
``images.npy`` (uint8 [n, H, W, 3] RGB) and ``pixels.npz`` (mean, std, bgr); writes ``logitsI.npy``
float32 and ``labelsI.npy`` uint16 for each image, and prints MXNet's version.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from export.mxnet_import import mx


def main(folder: Path) -> None:
    """Runs every image through the symbol on the CPU."""
    symbol = mx.sym.load(str(folder / "symbol.json"))
    arrays = mx.nd.load(str(folder / "network.params"))
    values = {name.partition(":")[2]: array for name, array in arrays.items()}
    images = np.load(folder / "images.npy")
    with np.load(folder / "pixels.npz") as seen:
        scaled = images.astype(np.float32) / np.float32(255)
        data = (scaled - seen["mean"].astype(np.float32)) / seen["std"].astype(np.float32)
        data = np.ascontiguousarray(
            (data[..., ::-1] if seen["bgr"] else data).transpose(0, 3, 1, 2)
        )
    values["data"] = mx.nd.array(data[:1])
    executor = symbol.bind(
        mx.cpu(),
        {name: values[name] for name in symbol.list_arguments()},
        aux_states={name: values[name] for name in symbol.list_auxiliary_states()},
        grad_req="null",
    )
    for number, image in enumerate(data):
        full, logits = executor.forward(is_train=False, data=mx.nd.array(image[None]))
        labels = full.asnumpy().argmax(1).astype(np.uint16)
        np.save(folder / f"logits{number}.npy", logits.asnumpy())
        np.save(folder / f"labels{number}.npy", labels)
    print(mx.__version__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
