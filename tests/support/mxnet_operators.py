"""MXNet's half of a comparison of operators: symbol, parameters, input and output a case.

Imported by a test file that runs itself as a script, in a process where MXNet may live.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_cases(
    cases: Mapping[str, Callable[..., Any]], folder: Path, size: tuple[int, int]
) -> None:
    """Writes ``NAME.json``, ``NAME.params``, ``NAME-data.npy`` [2,3,*size] and
    ``NAME-output.npy`` for each; a case is called with ``mxnet`` and the variable ``data``."""
    # oneDNN does not know target_shape; MXNet's own kernels know everything.
    os.environ["MXNET_MKLDNN_ENABLED"] = "0"
    import export.mxnet_import  # noqa: F401  (repairs NumPy for MXNet)
    import mxnet as mx  # isort: skip

    generator = np.random.default_rng(0)
    for name, build in cases.items():
        symbol = build(mx, mx.sym.var("data"))
        data = generator.normal(size=(2, 3, *size)).astype(np.float32)
        shapes, _, states = symbol.infer_shape(data=data.shape)
        values = {"data": mx.nd.array(data)}
        saved = {}
        kinds = [("arg", symbol.list_arguments(), shapes),
                 ("aux", symbol.list_auxiliary_states(), states)]  # fmt: skip
        for kind, names, lengths in kinds:
            for key, shape in zip(names, lengths, strict=True):
                if key == "data":
                    continue
                spread = (
                    generator.uniform(0.3, 1.5, shape)
                    if "var" in key
                    else generator.normal(size=shape) * _spread(key)
                )
                values[key] = mx.nd.array(spread)
                if not key.endswith("label"):
                    saved[f"{kind}:{key}"] = values[key]
        executor = symbol.bind(
            mx.cpu(),
            {key: values[key] for key in symbol.list_arguments()},
            aux_states={key: values[key] for key in symbol.list_auxiliary_states()},
            grad_req="null",
        )
        (output,) = executor.forward(is_train=False)
        symbol.save(str(folder / f"{name}.json"))
        mx.nd.save(str(folder / f"{name}.params"), saved or {"arg:unused": mx.nd.zeros((1,))})
        np.save(folder / f"{name}-data.npy", data)
        np.save(folder / f"{name}-output.npy", output.asnumpy())


def _spread(key: str) -> float:
    """Standard deviation of a parameter's values, by its name: ``still`` offsets are zero."""
    if "still" in key:
        return 0
    return 4 if "offset" in key else 0.5
