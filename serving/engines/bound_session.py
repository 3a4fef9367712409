"""A session whose input and output stay at fixed addresses of a device: what CUDA graphs need.

One block of memory for the largest batch serves the smaller ones too; each batch size has its own
binding, and on CUDA its own captured graph (``gpu_graph_id``).

Source: ONNX Runtime, "Using CUDA Graphs in the CUDA EP", "I/O Binding".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from serving.engine import EngineSpec
from serving.engines.devices import Block, Bytes, Device
from serving.engines.graph import INPUT, LOGITS, MASK


@dataclass(frozen=True)
class Tensor:
    """Name, type, and shape of one image's part of a batch."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Returns the size of one image in bytes."""
        return self.dtype.itemsize * int(np.prod(self.shape))


@dataclass(frozen=True)
class _Run:
    """One batch size: addresses and shapes, and which captured graph is theirs."""

    binding: onnxruntime.IOBinding
    options: onnxruntime.RunOptions


class BoundSession:
    """Runs one graph with one output on one device; not from two threads at once.

    Args:
        image, result: what one image is, and what comes of it.
        graphs: whether runs are captured; then each size is its own graph.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        device: Device,
        image: Tensor,
        result: Tensor,
        max_batch_size: int,
        *,
        graphs: bool,
    ) -> None:
        self.session = session
        self._device = device
        self._image, self._result = image, result
        self._graphs = graphs
        self._images_here: Bytes = device.host(max_batch_size * image.nbytes)
        self._results_here: Bytes = device.host(max_batch_size * result.nbytes)
        self._images_there: Block = device.allocate(max_batch_size * image.nbytes)
        self._results_there: Block = device.allocate(max_batch_size * result.nbytes)
        self._runs = {n: self._bind(n) for n in range(1, max_batch_size + 1)}

    def run(
        self, batch: npt.NDArray[np.uint8], dtype: np.dtype[np.generic] | None = None
    ) -> npt.NDArray[np.generic]:
        """Returns the output for uint8 ``[n,H,W,3]``, a new array ``[n,...]`` of the output's own
        type, or of ``dtype``."""
        n = len(batch)
        sent = self._images_here[: n * self._image.nbytes]
        received = self._results_here[: n * self._result.nbytes]
        np.copyto(sent.reshape(batch.shape), batch)
        self._device.upload(sent, self._images_there)
        self.launch(n)
        self._device.download(self._results_there, received)
        self._device.synchronise()
        result = received.view(self._result.dtype).reshape(n, *self._result.shape)
        # The one copy out of the memory that the next run writes to.
        return result.astype(dtype or self._result.dtype)

    def launch(self, n: int) -> None:
        """Begins a run of what lies on the device; ``Device.synchronise`` waits for its end."""
        run = self._runs[n]
        self.session.run_with_iobinding(run.binding, run.options)

    def _bind(self, n: int) -> _Run:
        binding = self.session.io_binding()
        device = self._device
        for bind, tensor, block in (
            (binding.bind_input, self._image, self._images_there),
            (binding.bind_output, self._result, self._results_there),
        ):
            bind(
                tensor.name,
                device.kind,
                device.number,
                tensor.dtype.type,
                [n, *tensor.shape],
                block.address,
            )
        options = onnxruntime.RunOptions()
        if device.stream:
            # Our own stream is waited for once, after the copy back.
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", str(n))
        return _Run(binding, options)


def image_tensor(height: int, width: int) -> Tensor:
    """Returns the contract's tensor ``image``."""
    return Tensor(INPUT, np.dtype(np.uint8), (height, width, 3))


def result_tensor(model: onnx.ModelProto, spec: EngineSpec) -> Tensor:
    """Returns the one output of a graph that is cut to it."""
    output = model.graph.output[0]
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(output.type.tensor_type.elem_type))
    if output.name == LOGITS and spec.logits_size is not None:
        size = spec.logits_size
        return Tensor(LOGITS, dtype, (spec.num_classes, size.height, size.width))
    return Tensor(MASK, dtype, (spec.size.height, spec.size.width))
