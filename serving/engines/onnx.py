"""The embedded engine: ONNX Runtime, one session an instance."""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from serving.engine import EngineSpec, Prediction
from serving.engines.cut import cut_graph, find_precision
from serving.errors import EngineFailed, InvalidModel
from serving.geometry import Size

INPUT = "image"
LOGITS = "logits"
MASK = "mask"
CHANNELS = 3
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"


class OnnxEngine:
    """Serves a graph of the contract: ``image`` uint8 ``[N,H,W,3]`` -> ``logits`` or ``mask``.

    The graph is cut to ``logits`` where it has them, else to ``mask``.

    Args:
        path: the ``model.onnx``.
        threads: cores to share out among the instances.

    Raises:
        InvalidModel: no readable graph, or not of the contract; the message names what differs.
    """

    def __init__(self, path: Path, *, instances: int, threads: int, max_batch_size: int) -> None:
        try:
            model = onnx.load(str(path))
        except Exception as error:
            raise InvalidModel(f"{path}: not a readable ONNX file: {error}") from None
        outputs = {value.name for value in model.graph.output}
        self._output = LOGITS if LOGITS in outputs else MASK
        try:
            model = cut_graph(model, self._output)
        except ValueError as error:
            raise InvalidModel(f"{path}: {error}; needed: {LOGITS} or {MASK}") from None
        self._spec = _read_spec(path, model, self._output, instances, max_batch_size)
        content = model.SerializeToString()
        sessions = [_open_session(path, content, instances, threads) for _ in range(instances)]
        # What was asked for may not be there: a CUDA build runs on the CPU without a GPU.
        self._providers = sessions[0].get_providers()
        self._sessions: SimpleQueue[onnxruntime.InferenceSession] = SimpleQueue()
        for session in sessions:
            self._sessions.put(session)

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    @property
    def name(self) -> str:
        return f"onnxruntime-{'cuda' if CUDA in self._providers else 'cpu'}"

    def warm(self) -> None:
        size = self._spec.size
        for n in range(1, self._spec.max_batch_size + 1):
            for _ in range(self._spec.instances):
                self.run(np.zeros((n, size.height, size.width, CHANNELS), np.uint8))

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        session = self._sessions.get()
        try:
            (result,) = session.run([self._output], {INPUT: batch})
        except Exception as error:
            raise EngineFailed(f"ONNX Runtime: {error}") from error
        finally:
            self._sessions.put(session)
        if self._output == LOGITS:
            return Prediction(result, None)
        return Prediction(None, result)

    def close(self) -> None:
        while not self._sessions.empty():
            self._sessions.get()


def choose_providers() -> list[str]:
    """CUDA where this ONNX Runtime build has it, and always the CPU."""
    present = onnxruntime.get_available_providers()
    return [provider for provider in (CUDA, CPU) if provider in present]


def _open_session(
    path: Path, content: bytes, instances: int, threads: int
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, threads // instances)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A session's threads spin between its nodes; not between runs, nor beside another's threads.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if instances > 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(content, options, choose_providers())
    except Exception as error:
        raise InvalidModel(f"{path}: ONNX Runtime cannot load it: {error}") from None


def _read_spec(
    path: Path, model: onnx.ModelProto, output: str, instances: int, max_batch_size: int
) -> EngineSpec:
    inputs = {value.name: value.type.tensor_type for value in model.graph.input}
    if set(inputs) != {INPUT}:
        raise InvalidModel(f"{path}: inputs are {sorted(inputs)}; the contract is one, {INPUT!r}")
    image = inputs[INPUT]
    shape = _static_shape(image)
    if image.elem_type != onnx.TensorProto.UINT8 or len(shape) != 4 or shape[3] != CHANNELS:
        raise InvalidModel(
            f"{path}: {INPUT} is {onnx.TensorProto.DataType.Name(image.elem_type)} {shape}; "
            f"the contract is UINT8 [N,H,W,3]: networks with other inputs are not served"
        )
    if not shape[1] or not shape[2]:
        raise InvalidModel(f"{path}: height and width of {INPUT} must be static, not {shape}")
    result = _static_shape(model.graph.output[0].type.tensor_type)
    logits_size, num_classes = None, 0
    if output == LOGITS:
        if len(result) != 4 or not all(result[1:]):
            raise InvalidModel(f"{path}: {LOGITS} must be [N,C,h,w] with static C, h, w: {result}")
        num_classes, logits_size = result[1], Size(result[2], result[3])
    return EngineSpec(
        size=Size(shape[1], shape[2]),
        num_classes=num_classes,
        logits_size=logits_size,
        max_batch_size=max_batch_size,
        instances=instances,
        precision=find_precision(model),
    )


def _static_shape(tensor: onnx.TypeProto.Tensor) -> list[int]:
    """Dimensions, 0 where symbolic."""
    return [dimension.dim_value for dimension in tensor.shape.dim]
