"""MXNet's gradients of other people's kinds of networks: ``network_symbol_gradients.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.support.network_symbols import NETWORKS, SIZE

# MXNet has operators of theirs in float32 only.
FLOAT32 = ("alignseg", "normalisations", "unet", "fcn_8s", "fcn_16s", "fcn_32s")
# It trains modulated deformable convolutions on GPUs alone.
UNTRAINABLE = ("fapn",)


def main(folder: Path) -> None:
    import export.mxnet_import  # noqa: F401  (repairs NumPy for MXNet)
    import mxnet as mx  # isort: skip

    from export.symbols.graph import read_symbol
    from export.symbols.params import random_params, write_params
    from tests.support.mxnet_gradients import write_gradients

    generator = np.random.default_rng(2)
    for name, build in NETWORKS.items():
        if name in UNTRAINABLE:
            continue
        build(mx, mx.sym.var("data")).save(str(folder / f"{name}.json"))
        graph = read_symbol(folder / f"{name}.json")
        write_params(random_params(graph, *SIZE, seed=4, neutral=False), folder / f"{name}.params")
        data = generator.normal(size=(2, 3, *SIZE)).astype(np.float32)
        np.save(folder / f"{name}-data.npy", data)
        write_gradients(name, folder, "float32" if name in FLOAT32 else "float64")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
