"""A network on MXNet 1.9.1: the symbol, bound once for one image."""

from __future__ import annotations

import json
import threading

import numpy as np
from job import Job

# MXNet 1.9.1 uses the alias that numpy 1.24 dropped.
setattr(np, "bool", np.bool_)  # noqa: B010
import mxnet as mx  # noqa: E402


class MxnetModel:
    """Takes ``image`` uint8 ``[1,H,W,3]``, gives its label map; any thread may call.

    An executor holds one input, so callers take turns.
    """

    def __init__(self, job: Job) -> None:
        symbol = mx.sym.load(str(job.graph / "network-symbol.json"))
        values = {
            name.partition(":")[2]: array
            for name, array in mx.nd.load(str(job.graph / "network.params")).items()
        }
        self.height, self.width = json.loads((job.graph / "size.json").read_text())
        image = mx.nd.zeros((1, self.height, self.width, 3), dtype=np.uint8)
        arguments = {n: image if n == "image" else values[n] for n in symbol.list_arguments()}
        auxiliary = {n: values[n] for n in symbol.list_auxiliary_states()}
        self.executor = symbol.bind(mx.cpu(), arguments, grad_req="null", aux_states=auxiliary)
        self.lock = threading.Lock()

    def label(self, pixels: np.ndarray) -> np.ndarray:
        """The label map of the only image, uint8 ``[H,W]``."""
        with self.lock:
            return self.executor.forward(is_train=False, image=mx.nd.array(pixels, dtype=np.uint8))[
                0
            ].asnumpy()[0]
