"""Runs a network on MXNet: the symbol is bound once, as Triton's Python backend would do it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.engines.graphs import network_at
from benchmarks.engines.subject import Case, EngineMissing
from export.passes.contract import IMAGE
from export.repository.mxnet_model import PARAMS_FILE, mxnet_files
from export.symbols.graph import SYMBOL_FILE


class MxnetSubject:
    """A network with random weights in float32 on MXNet.

    Raises EngineMissing without MXNet, and for other precisions.
    """

    def __init__(self, case: Case) -> None:
        if case.precision != "fp32":
            raise EngineMissing(f"--engine mxnet runs fp32, not {case.precision}")
        if case.network is None:
            raise EngineMissing("--engine mxnet executes symbols; leave --served out")
        try:
            from export.mxnet_import import mx
        except ImportError as error:
            raise EngineMissing(str(error)) from error
        self._mx = mx
        self.on_gpu = mx.context.num_gpus() > 0
        self._context = mx.gpu(0) if self.on_gpu else mx.cpu()
        size = (case.height, case.width)
        symbol, weights = network_at(case.network, case.classes, *size)
        output = case.output or "logits"
        files = mxnet_files(symbol, weights, *size, (output,))
        with tempfile.TemporaryDirectory() as folder:
            files.write(Path(folder))
            loaded = mx.sym.load(str(Path(folder) / SYMBOL_FILE))
            values = {
                name.partition(":")[2]: array.as_in_context(self._context)
                for name, array in mx.nd.load(str(Path(folder) / PARAMS_FILE)).items()
            }
        self._batch = case.images()
        values[IMAGE] = mx.nd.array(self._batch, self._context, np.uint8)
        self._executor = loaded.bind(
            self._context,
            {name: values[name] for name in loaded.list_arguments()},
            aux_states={name: values[name] for name in loaded.list_auxiliary_states()},
            grad_req="null",
        )
        shape = self._executor.forward(is_train=False)[0].shape
        self.engine = f"mxnet-{'gpu' if self.on_gpu else 'cpu'}"
        self.fetched = output + ("" if output == "mask" else f" at {shape[2]}x{shape[3]}, float32")
        self.layout = "symbol bound once"
        self.versions = f"MXNet {mx.__version__}"

    def compute(self) -> None:
        self._executor.forward(is_train=False)
        self._mx.nd.waitall()

    def run(self) -> None:
        image = self._mx.nd.array(self._batch, self._context, np.uint8)
        (result,) = self._executor.forward(is_train=False, **{IMAGE: image})
        result.asnumpy()

    def close(self) -> None:
        del self._executor
