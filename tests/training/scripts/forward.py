"""MXNet's own forward pass: ``forward.py RUN IMAGE.npy OUTPUT.npz``.

``RUN`` holds ``network-symbol.json`` and ``best.params``; ``IMAGE.npy`` is uint8 ``[H,W,3]`` RGB at
the network's size. Out come the outputs ``output0``, ``output1``, ... of one image, ``[C,h,w]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from export.mxnet_import import mx
from export.symbols.networks import IMAGENET
from training.transforms import normalize


def main() -> None:
    run = Path(sys.argv[1])
    network = mx.gluon.SymbolBlock.imports(
        str(run / "network-symbol.json"), ["data"], str(run / "best.params")
    )
    outputs = network(mx.nd.array(normalize(np.load(sys.argv[2]), IMAGENET)[None]))
    np.savez(sys.argv[3], **{f"output{i}": o.asnumpy()[0] for i, o in enumerate(outputs)})


if __name__ == "__main__":
    main()
