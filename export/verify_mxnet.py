"""The MXNet half of ``export.verify``, in a process of its own.

``python -m export.verify_mxnet compare FOLDER`` reads ``symbol.json`` (outputs: the full-size map,
the logits), ``network.params``, ``images.npy`` (uint8 [n, H, W, 3] RGB) and ``pixels.npz`` (mean,
std, bgr); it writes ``logitsI.npy`` float32 and ``labelsI.npy`` uint16 for each image, and prints
MXNet's version. ``load SYMBOL PARAMS INPUT N H W C`` runs a symbol once on an empty uint8 image.
Where MXNet refuses, the last line of standard error says why, in MXNet's words.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from export.mxnet_import import mx, mxnet_reason


def compare(folder: Path) -> None:
    """Runs every image through the symbol on the CPU."""
    symbol = mx.sym.load(str(folder / "symbol.json"))
    images = np.load(folder / "images.npy")
    with np.load(folder / "pixels.npz") as seen:
        scaled = images.astype(np.float32) / np.float32(255)
        data = (scaled - seen["mean"].astype(np.float32)) / seen["std"].astype(np.float32)
        data = np.ascontiguousarray(
            (data[..., ::-1] if seen["bgr"] else data).transpose(0, 3, 1, 2)
        )
    executor = _bind(symbol, folder / "network.params", {"data": mx.nd.array(data[:1])})
    for number, image in enumerate(data):
        full, logits = executor.forward(is_train=False, data=mx.nd.array(image[None]))
        labels = full.asnumpy().argmax(1).astype(np.uint16)
        np.save(folder / f"logits{number}.npy", logits.asnumpy())
        np.save(folder / f"labels{number}.npy", labels)


def load(symbol: Path, params: Path, name: str, shape: tuple[int, ...]) -> None:
    """Binds a symbol and runs it, so that whatever MXNet has against it comes to light."""
    image = mx.nd.zeros(shape, dtype=np.uint8)
    executor = _bind(mx.sym.load(str(symbol)), params, {name: image})
    for output in executor.forward(is_train=False):
        output.wait_to_read()


def _bind(symbol: Any, params: Path, inputs: dict[str, Any]) -> Any:
    arrays = mx.nd.load(str(params))
    values = {name.partition(":")[2]: array for name, array in arrays.items()} | inputs
    names = [*symbol.list_arguments(), *symbol.list_auxiliary_states()]
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"the symbol reads {missing[0]!r}, which is not among the parameters")
    return symbol.bind(
        mx.cpu(),
        {name: values[name] for name in symbol.list_arguments()},
        aux_states={name: values[name] for name in symbol.list_auxiliary_states()},
        grad_req="null",
    )


def main(arguments: list[str]) -> int:
    """Runs one of the two commands; returns the exit code."""
    command, *rest = arguments
    try:
        if command == "compare":
            compare(Path(rest[0]))
        else:
            symbol, params, name, *lengths = rest
            load(Path(symbol), Path(params), name, tuple(map(int, lengths)))
    except (mx.base.MXNetError, ValueError, TypeError) as error:
        print(mxnet_reason(error), file=sys.stderr)
        return 1
    print(mx.__version__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
