"""The one place that imports MXNet 1.9.1, which is older than the Python and NumPy around it.

Everything else does ``from export.mxnet_import import mx``. Importing it raises
``MXNetMissing`` (with the remedy) where MXNet is not installed.

Run as ``python -m export.mxnet_import FOLDER`` it is the MXNet half of ``export.verify``.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import numpy as np

# oneDNN's primitive cache and OpenMP bind at import, so these are set before it.
os.environ.setdefault("MXNET_SAFE_ACCUMULATION", "1")
os.environ.setdefault("MXNET_CPU_WORKER_NTHREADS", "1")
# MXNet alone would take half of the cores, counting on hyperthreads.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

# Removed from NumPy in 1.24; MXNet 1.9.1 reads it while importing.
if "bool" not in np.__dict__:
    np.bool = np.bool_  # type: ignore[attr-defined]  # NumPy's stubs know that it is gone


class MXNetMissing(ImportError):
    """Raised where MXNet is not installed."""


try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        import mxnet as mx
except ModuleNotFoundError as error:
    raise MXNetMissing(
        "MXNet is not installed; install the extra: pip install 'segserve[training]' "
        "(Python 3.11 at most, x86-64 Linux)"
    ) from error

# gluon's own utilities warn on import-time regex escapes and at run time on numpy aliases.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"mxnet(\..*)?")

__all__ = ["MXNetMissing", "mx", "run_symbol"]


def run_symbol(folder: Path) -> None:
    """Runs the images of ``export.verify`` through its symbol on the CPU; prints MXNet's version.

    Reads ``symbol.json`` (outputs: the full-size map, the logits), ``network.params``,
    ``images.npy`` (uint8 [n, H, W, 3] RGB) and ``pixels.npz`` (mean, std, bgr); writes
    ``logitsI.npy`` float32 and ``labelsI.npy`` uint8 for each image.
    """
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
        labels = full.asnumpy().argmax(1).astype(np.uint8)
        np.save(folder / f"logits{number}.npy", logits.asnumpy())
        np.save(folder / f"labels{number}.npy", labels)
    print(mx.__version__)


if __name__ == "__main__":
    run_symbol(Path(sys.argv[1]))
