"""Implements Triton's ``onnxruntime`` backend in Python, for servers without the compiled one.

In ``BACKENDS/onnxruntime/`` this file serves every model with ``platform: "onnxruntime_onnx"``:
the same ``config.pbtxt``, ``model.onnx`` and answers as with the backend of NVIDIA's container.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Before the import: official builds send usage events otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
import triton_python_backend_utils as pb_utils

Config = Mapping[str, Any]
Arrays = Mapping[str, npt.NDArray[np.generic]]
TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}
# What Triton assumes where a model batches and its configuration does not say how much.
DEFAULT_MAX_BATCH_SIZE = 4
_GRAPH_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


class TritonPythonModel:
    """One instance of one version of a model; Triton calls it from one thread."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Completes tensors and batching from the graph if the configuration has neither."""
        given = config.as_dict()
        if given["input"] and given["output"]:
            return config
        session = _open_session(given, _graph_path(given, Path(pb_utils.get_model_dir())))
        tensors = [*session.get_inputs(), *session.get_outputs()]
        batches = all(t.shape and not isinstance(t.shape[0], int) for t in tensors)
        size = given["max_batch_size"] or (DEFAULT_MAX_BATCH_SIZE if batches else 0)
        config.set_max_batch_size(size)
        if size > 1 and "dynamic_batching" not in given:
            config.set_dynamic_batching()
        for add, found in (
            (config.add_input, session.get_inputs()),
            (config.add_output, session.get_outputs()),
        ):
            for tensor in found:
                dims = [d if isinstance(d, int) else -1 for d in tensor.shape]
                dims = dims[1:] if size else dims
                add({"name": tensor.name, "data_type": TYPES[tensor.type], "dims": dims})
        return config

    def initialize(self, args: Mapping[str, str]) -> None:
        """Opens the graph and checks that it has the tensors that the configuration promises."""
        config = json.loads(args["model_config"])
        path = _graph_path(config, Path(args["model_repository"]) / args["model_version"])
        device = args["model_instance_device_id"] if args["model_instance_kind"] == "GPU" else None
        self.session = _open_session(config, path, device)
        self.batches = config["max_batch_size"] > 0
        self.inputs = [tensor["name"] for tensor in config["input"]]
        _check(config["input"], self.session.get_inputs(), path)
        _check(config["output"], self.session.get_outputs(), path)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Returns one response for each request, in order; together they fit into one batch."""
        feeds = [
            {name: pb_utils.get_input_tensor_by_name(r, name).as_numpy() for name in self.inputs}
            for r in requests
        ]
        wanted = [r.requested_output_names() for r in requests]
        if self.batches and len(requests) > 1:
            try:
                return self._run_batch(feeds, wanted)
            except Exception as error:
                # A request that fails must not take its batch mates with it: each alone again.
                pb_utils.Logger.log_warn(f"a batch of {len(requests)} requests failed: {error}")
        return [self._run_one(feed, names) for feed, names in zip(feeds, wanted, strict=True)]

    def finalize(self) -> None:
        """Frees the session."""
        self.session = None

    def _run_batch(self, feeds: Sequence[Arrays], wanted: Sequence[Sequence[str]]) -> list[Any]:
        batch = {n: np.concatenate([feed[n] for feed in feeds]) for n in self.inputs}
        names = list(dict.fromkeys(name for request in wanted for name in request))
        results = dict(zip(names, self.session.run(names, batch), strict=True))
        responses, end = [], 0
        for feed, request in zip(feeds, wanted, strict=True):
            start, end = end, end + len(feed[self.inputs[0]])
            responses.append(_response({name: results[name][start:end] for name in request}))
        return responses

    def _run_one(self, feed: Arrays, names: Sequence[str]) -> Any:
        try:
            return _response(dict(zip(names, self.session.run(names, feed), strict=True)))
        except Exception as error:
            failure = pb_utils.TritonError(f"onnx runtime error: {error}")
            return pb_utils.InferenceResponse(error=failure)


def _response(results: Arrays) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor(n, array) for n, array in results.items()])


def _graph_path(config: Config, version: Path) -> Path:
    name: str = config["default_model_filename"] or "model.onnx"
    return version / name


def _open_session(
    config: Config, path: Path, device: str | None = None
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    parameters = {k: v["string_value"] for k, v in config.get("parameters", {}).items()}
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = _GRAPH_LEVELS[level]
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if device is not None:
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device}))
    return onnxruntime.InferenceSession(str(path), options, providers=providers)


def _check(configured: Sequence[Config], found: Sequence[Any], path: Path) -> None:
    types = {tensor.name: TYPES.get(tensor.type, tensor.type) for tensor in found}
    for tensor in configured:
        if types.get(tensor["name"]) != tensor["data_type"]:
            raise pb_utils.TritonModelException(
                f"{path} does not match its configuration: expected {tensor['name']}"
                f" {tensor['data_type']}, the graph has {types}"
            )
