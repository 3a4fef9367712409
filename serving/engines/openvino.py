"""The embedded engine on OpenVINO, whose bf16 and int8 use the matrix units of newer processors.

It reads the repository's ONNX files as they are, cut to the output that is fetched. Winograd's form
(``winograd``) is not applied: it is made for ONNX Runtime's direct convolutions.

Shapes are static, which compiles to the fastest code: a batch is run in pieces of 1, 2, 4, ...
images, so that few shapes are compiled, each when it first occurs. Compiled graphs are kept in the
cache folder between starts. Nothing is copied: pixels are read where they lie, and results are
written into the arrays that are answered.

OpenVINO is imported when the first such engine is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import os
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from serving.engine import EngineSpec
from serving.engines.acceleration import Acceleration
from serving.engines.graph import CHANNELS, INPUT, LOGITS, cut_to, outputs_of, read_graph, read_spec
from serving.errors import EngineFailed, InvalidModel
from serving.imaging.restore import Prediction
from serving.palette import LabelMap
from serving.settings import cache_folder

log = logging.getLogger("segserve")

FP32, BF16, FP16 = "fp32", "bf16", "fp16"
HINTS = {FP32: "f32", BF16: "bf16", FP16: "f16"}
# Of all compiled graphs together; those of the models that were opened longest ago go first.
MAX_CACHE_BYTES = 4 << 30
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def run_precision(file: str, floats: str) -> str:
    """Returns the precision of runs: of the file, or of its floats where these are narrowed."""
    return file if file == "int8" or floats == FP32 else floats


class OpenVinoEngine:
    """Serves a graph of the contract: ``image`` uint8 ``[N,H,W,3]`` -> ``logits`` or ``mask``.

    The graph is cut to ``logits`` where it has them, else to ``mask``.

    Attributes:
        digest: of the cut graph with its weights.

    Args:
        path: the ``model.onnx``.
        threads: cores to share out among the instances.
        precision: what floating-point operators compute in: ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        InvalidModel: no readable graph, not of the contract, weights that are not finite, or
            OpenVINO is missing or refuses the graph; the message names what.
    """

    def __init__(
        self,
        path: Path,
        *,
        instances: int,
        threads: int,
        max_batch_size: int,
        acceleration: Acceleration = Acceleration(),  # noqa: B008 (frozen)
        precision: str = FP32,
    ) -> None:
        try:
            self._openvino: Any = import_openvino()
        except ImportError as error:
            raise InvalidModel(
                f"{path}: OpenVINO cannot be imported ({error}); install it with "
                f"`pip install 'segserve[openvino]'`, or choose cpu_engine onnxruntime"
            ) from None
        self._path = path
        self._options = acceleration.openvino
        model = read_graph(path)
        self._output = outputs_of(model)[0]
        model = cut_to(path, model, self._output)
        spec = read_spec(path, model, instances, max_batch_size)
        _check_weights(path, model)
        content = model.SerializeToString()
        del model
        self.digest = hashlib.sha256(content).hexdigest()[:32]
        self._spec = replace(spec, precision=run_precision(spec.precision, precision))
        share = acceleration.intra_op_threads or max(1, threads // instances)
        self._config: dict[str, object] = {"INFERENCE_PRECISION_HINT": HINTS[precision]}
        streams = self._options.streams or instances
        self._config["NUM_STREAMS"] = streams
        if self._options.device == "CPU":
            self._config["INFERENCE_NUM_THREADS"] = self._options.threads or share * streams
            # Other threads of the server use the same cores; the system places all of them.
            self._config["ENABLE_CPU_PINNING"] = False
        # Compiled graphs are of one version of OpenVINO.
        self._cache = _open_cache(f"{self.digest}-{self.version.split('-')[0]}")
        self._lock = threading.Lock()
        # By images of a piece, the largest first; None where it was not needed yet.
        self._compiled: dict[int, Any] = {
            1 << power: None for power in reversed(range(max_batch_size.bit_length()))
        }
        self._instances: SimpleQueue[dict[int, Any]] = SimpleQueue()
        for _ in range(instances):
            self._instances.put({})
        try:
            self._core: Any = open_core()
            self._check_device(precision)
            self._model: Any = self._core.read_model(content)
            del content
            self._compile(1)
        except InvalidModel:
            raise
        except Exception as error:
            raise InvalidModel(f"{path}: OpenVINO cannot load it: {_shorten(error)}") from None

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    @property
    def name(self) -> str:
        return f"openvino-{self._options.device.lower()}"

    @property
    def version(self) -> str:
        """Returns OpenVINO's version."""
        return str(self._openvino.__version__)

    @property
    def cache(self) -> Path | None:
        """Returns where what was found out of this graph can be kept; None where nothing can."""
        return self._cache

    def warm(self) -> None:
        size = self._spec.size
        for n in reversed(self._compiled):
            for _ in range(self._spec.instances):
                self.run(np.zeros((n, size.height, size.width, CHANNELS), np.uint8))

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        requests = self._instances.get()
        try:
            result = self._run(requests, batch)
        except Exception as error:
            raise EngineFailed(f"OpenVINO: {_shorten(error)}") from error
        finally:
            self._instances.put(requests)
        if self._output == LOGITS:
            return Prediction(np.asarray(result, np.float32), None)
        return Prediction(None, cast(LabelMap, result))

    def close(self) -> None:
        while not self._instances.empty():
            self._instances.get()
        self._compiled.clear()
        self._model = None

    def _run(
        self, requests: dict[int, Any], batch: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.generic]:
        spec, first = self._spec, 0
        result: npt.NDArray[np.generic]
        if spec.logits_size is None:
            datatype = np.uint16 if spec.wide else np.uint8
            result = np.empty((len(batch), spec.size.height, spec.size.width), datatype)
        else:
            size = spec.logits_size
            shape = (len(batch), spec.num_classes, size.height, size.width)
            result = np.empty(shape, np.float32)
        for n in self._compiled:
            while len(batch) - first >= n:
                if n not in requests:
                    requests[n] = _Request(self._openvino, self._compile(n))
                requests[n].run(batch[first : first + n], result[first : first + n])
                first += n
        return result

    def _compile(self, n: int) -> Any:
        """Returns the graph for ``n`` images at once."""
        with self._lock:
            if self._compiled[n] is None:
                size = self._spec.size
                self._model.reshape({INPUT: [n, size.height, size.width, CHANNELS]})
                self._compiled[n] = self._compile_shape()
                if all(compiled is not None for compiled in self._compiled.values()):
                    self._model = None  # It is as large as the weights.
            return self._compiled[n]

    def _compile_shape(self) -> Any:
        device = self._options.device
        if self._cache is not None:
            try:
                # Not mapped: another process may replace the file.
                kept = {**self._config, "CACHE_DIR": str(self._cache), "ENABLE_MMAP": False}
                return self._core.compile_model(self._model, device, kept)
            except Exception as error:
                log.warning("%s: OpenVINO goes without its cache: %s", self._path, _shorten(error))
                self._cache = None
        return self._core.compile_model(self._model, device, self._config)

    def _check_device(self, precision: str) -> None:
        """Raises InvalidModel where the device is not there, or does not know the precision."""
        device = self._options.device
        present = self._core.available_devices
        if not any(name == device or name.split(".")[0] == device for name in present):
            raise InvalidModel(
                f"{self._path}: OpenVINO finds no device {device}; it has {', '.join(present)}"
            )
        known = self._core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        if precision != FP32 and precision.upper() not in known:
            raise InvalidModel(
                f"{self._path}: this {device} does not compute in {precision}; OpenVINO knows "
                f"{', '.join(known)} there; choose precision fp32"
            )


class _Request:
    """One instance's run of one batch size.

    Between runs it holds memory of its own, which is never written to and so takes no room: not the
    pixels and results of the last run, which may be large, or somebody else's.
    """

    def __init__(self, openvino: Any, compiled: Any) -> None:
        self._tensor = openvino.Tensor
        self._request = compiled.create_infer_request()
        self._idle = tuple(
            self._tensor(np.zeros(tuple(port.shape), dtype), shared_memory=True)
            for port, dtype in (
                (compiled.input(0), np.uint8),
                (compiled.output(0), compiled.output(0).element_type.to_dtype()),
            )
        )
        self._put(*self._idle)

    def run(self, pixels: npt.NDArray[np.uint8], result: npt.NDArray[np.generic]) -> None:
        self._put(
            self._tensor(_lend(pixels), shared_memory=True),
            self._tensor(result, shared_memory=True),
        )
        try:
            # Results as views: by default all of them would be copied.
            self._request.infer(None, share_outputs=True)
        finally:
            self._put(*self._idle)

    def _put(self, pixels: Any, result: Any) -> None:
        self._request.set_input_tensor(pixels)
        self._request.set_output_tensor(result)


class _Lent:
    """The memory of a read-only array, shown as writable: OpenVINO takes no other, and only reads
    its inputs."""

    def __init__(self, array: npt.NDArray[np.uint8]) -> None:
        self.array = array
        self.__array_interface__ = {
            **array.__array_interface__,
            "data": (array.ctypes.data, False),
        }


def _lend(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    array = np.ascontiguousarray(array)
    return array if array.flags.writeable else np.asarray(_Lent(array))


def _check_weights(path: Path, model: onnx.ModelProto) -> None:
    """Raises InvalidModel where weights are NaN or infinite, as after a training that diverged.

    OpenVINO's activations make 0 of NaN: its answers would be finite, and a label map of them wrong
    without anybody knowing. ONNX Runtime's are NaN, which the server looks for.
    """
    constants = [
        attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.HasField("t")
    ]
    for tensor in (*model.graph.initializer, *constants):
        # A single infinity is a bound (Clip), or fills a mask.
        single = np.prod(tensor.dims) <= 1
        if tensor.data_type not in _FLOATS:
            continue
        values = numpy_helper.to_array(tensor)
        if np.isnan(values).any() or not (single or np.isfinite(values).all()):
            raise InvalidModel(
                f"{path}: {tensor.name or 'a constant'} holds NaN or infinity, of which OpenVINO "
                f"would make finite answers; export the network from weights that are finite"
            )


def _open_cache(name: str) -> Path | None:
    """Returns the folder of one graph's compiled forms; None where there can be none."""
    folder = cache_folder() / "openvino" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        if not os.access(folder, os.W_OK):
            return None
        _prune(folder.parent, folder)
    except OSError as error:
        log.debug("no cache of compiled graphs: %s", error)
        return None
    return folder


def _prune(parent: Path, kept: Path) -> None:
    """Removes the folders of ``parent`` that were used longest ago, down to MAX_CACHE_BYTES."""
    found = []
    for folder in parent.iterdir():
        with contextlib.suppress(OSError):  # another process prunes, too
            size = sum(file.stat().st_size for file in folder.iterdir())
            found.append((folder.stat().st_mtime, size, folder))
    left = sum(size for _, size, _ in found)
    for _, size, folder in sorted(found):
        if left <= MAX_CACHE_BYTES:
            return
        if folder != kept:
            shutil.rmtree(folder, ignore_errors=True)
            left -= size


def _shorten(error: Exception) -> str:
    """Returns what a message of OpenVINO says; its first lines name OpenVINO's own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (" ".join(message or lines) or type(error).__name__)[:500]


# Imported with the package, unless it cannot be; it reports the import to its maker.
_TOOLS = "openvino.tools.ovc"
_IMPORT = threading.Lock()


def import_openvino() -> ModuleType:
    """Returns the package, imported without its conversion tools.

    Importing those sends an event to their maker's statistics and leaves a file in the user's home.

    Raises:
        ImportError: OpenVINO is not installed, or not for this processor or Python.
    """
    with _IMPORT:
        hidden = _TOOLS not in sys.modules
        if hidden:
            # What is None here cannot be imported, which the package allows for.
            sys.modules[_TOOLS] = None  # type: ignore[assignment]  # as the import system has it
        try:
            return importlib.import_module("openvino")
        finally:
            if hidden:
                del sys.modules[_TOOLS]


def open_core() -> Any:
    """Returns OpenVINO's ``Core``, which reads ``DeformConv`` too: its own reader of ONNX does
    not, though it has such an operator.

    Raises:
        ImportError: see :func:`import_openvino`.
    """
    openvino = import_openvino()
    core = openvino.Core()
    extension = importlib.import_module("openvino.frontend.onnx").ConversionExtension
    core.add_extension(extension("DeformConv", _translate_deformable))
    return core


def _translate_deformable(node: Any) -> Any:
    """Translates ONNX' DeformConv to OpenVINO's: offsets and masks are laid out alike in both.

    Source: ONNX, Operators.md, DeformConv; OpenVINO, DeformableConvolution-8.
    """
    operators = import_openvino().opset8
    inputs = [node.get_input(index) for index in range(node.get_input_size())]
    # One that is left out has no type of a value.
    bias, mask = (
        inputs[index]
        if len(inputs) > index and inputs[index].get_node().get_type_name() != "NullNode"
        else None
        for index in (3, 4)
    )
    pads = list(node.get_attribute("pads", [0, 0, 0, 0]))
    result = operators.deformable_convolution(
        data=inputs[0],
        offsets=inputs[2],
        filters=inputs[1],
        strides=list(node.get_attribute("strides", [1, 1])),
        pads_begin=pads[:2],
        pads_end=pads[2:],
        dilations=list(node.get_attribute("dilations", [1, 1])),
        mask=mask,
        auto_pad="explicit",
        group=node.get_attribute("group", 1),
        deformable_group=node.get_attribute("offset_group", 1),
        # Beyond the map are zeros, which weigh into positions at its edge.
        bilinear_interpolation_pad=True,
    )
    if bias is not None:
        result = operators.add(result, operators.reshape(bias, [1, -1, 1, 1], False))
    return result.outputs()
