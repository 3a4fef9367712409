"""Runs an MXNet symbol in Triton: the ``model.py`` of models with ``backend: "python"``.

``segserve export --format mxnet`` copies this file beside ``network-symbol.json`` and
``network.params``, so it imports nothing of the exporter. Needs mxnet and numpy below 2.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

# MXNet 1.9.1 uses the alias that numpy 1.24 dropped.
setattr(np, "bool", np.bool_)  # noqa: B010
import mxnet as mx  # noqa: E402

INPUT = "image"
# Each holds the memory of its intermediate results.
MAX_EXECUTORS = 8


class TritonPythonModel:
    """One instance of one version of a model; Triton calls it from one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the symbol and binds it for one image, which shows whether the files fit."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        gpu = args["model_instance_kind"] == "GPU" and mx.context.num_gpus() > 0
        self.context = mx.gpu(int(args["model_instance_device_id"])) if gpu else mx.cpu()
        self.symbol = mx.sym.load(str(folder / "network-symbol.json"))
        self.values = {
            name.partition(":")[2]: array.as_in_context(self.context)
            for name, array in mx.nd.load(str(folder / "network.params")).items()
        }
        self.batches = config["max_batch_size"] > 0
        self.executor = lru_cache(MAX_EXECUTORS)(self._bind)
        dims = tuple(int(d) for d in config["input"][0]["dims"])
        names = tuple(tensor["name"] for tensor in config["output"])
        self._forward(np.zeros((1, *dims[-3:]), np.uint8), names)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Returns one response a request, in order; Triton hands over what fits into one batch."""
        images = [pb_utils.get_input_tensor_by_name(r, INPUT).as_numpy() for r in requests]
        wanted = [tuple(r.requested_output_names()) for r in requests]
        if self.batches and len(requests) > 1:
            try:
                return self._run_batch(images, wanted)
            except Exception as error:
                # A request that fails must not take its batch mates with it: each alone again.
                pb_utils.Logger.log_warn(f"a batch of {len(requests)} requests failed: {error}")
        return [self._run_one(i, names) for i, names in zip(images, wanted, strict=True)]

    def finalize(self) -> None:
        """Frees the executors."""
        self.executor.cache_clear()

    def _run_batch(
        self, images: list[NDArray[np.uint8]], wanted: list[tuple[str, ...]]
    ) -> list[Any]:
        names = tuple(sorted({name for request in wanted for name in request}))
        results = self._forward(np.concatenate(images), names)
        responses, end = [], 0
        for own, request in zip(images, wanted, strict=True):
            start, end = end, end + len(own)
            responses.append(_response({name: results[name][start:end] for name in request}))
        return responses

    def _run_one(self, images: NDArray[np.uint8], names: tuple[str, ...]) -> Any:
        try:
            return _response(self._forward(images, names))
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"MXNet: {error}"))

    def _forward(self, images: NDArray[np.uint8], names: tuple[str, ...]) -> dict[str, Any]:
        executor = self.executor(images.shape, names)
        image = mx.nd.array(images, self.context, np.uint8)
        results = executor.forward(is_train=False, **{INPUT: image})
        return {name: r.asnumpy() for name, r in zip(names, results, strict=True)}

    def _bind(self, shape: tuple[int, ...], names: tuple[str, ...]) -> Any:
        """Returns the executor for a batch of that shape, of the nodes that these outputs need."""
        outputs = self.symbol.list_outputs()
        symbol = mx.sym.Group([self.symbol[outputs.index(f"{name}_output")] for name in names])
        values = {**self.values, INPUT: mx.nd.zeros(shape, self.context, np.uint8)}
        return symbol.bind(
            self.context,
            {name: values[name] for name in symbol.list_arguments()},
            aux_states={name: values[name] for name in symbol.list_auxiliary_states()},
            grad_req="null",
        )


def _response(results: dict[str, Any]) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor(n, r) for n, r in results.items()])
