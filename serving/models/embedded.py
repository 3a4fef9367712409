"""Opens the embedded engine of a model: on a GPU where its configuration and the machine allow."""

from __future__ import annotations

import logging

from serving.engine import Engine, EngineSpec
from serving.engines.accelerated import INSTANCES, AcceleratedEngine
from serving.engines.acceleration import GPU, Acceleration, read_acceleration
from serving.engines.cpu_choice import open_cpu_engine
from serving.engines.devices import CudaDevice, Device, load_cuda_runtime
from serving.engines.onnxruntime import Provider
from serving.engines.providers import gpu_providers, wants_gpu
from serving.errors import EngineFailed, InvalidModel
from serving.models.repository import CONFIG_FILE, ModelFolder
from serving.settings import Settings

log = logging.getLogger("segserve")


def open_onnx_engine(folder: ModelFolder, version: int, settings: Settings) -> Engine:
    """Opens the engine for one version of a model.

    With ``KIND_AUTO``, where a GPU's provider is installed but does not start, the CPU is used and
    the log says why; ``KIND_GPU`` is an error then. Which engine runs on the CPU is chosen by
    :func:`open_cpu_engine`.

    Raises:
        InvalidModel: the graph or the configuration cannot be served; the message names what.
    """
    where = folder.path / CONFIG_FILE
    acceleration = read_acceleration(where, folder.config)
    if wants_gpu(where, acceleration):
        try:
            return open_on_gpu(folder, version, acceleration)
        except (InvalidModel, EngineFailed) as error:
            if acceleration.device == GPU:
                raise InvalidModel(str(error)) from error
            log.warning("%s runs on the CPU: %s", folder.name, error)
    return open_cpu_engine(
        folder.graph(version),
        f"model {folder.name} version {version}",
        cpu_engine=settings.cpu_engine,
        instances=folder.instances,
        threads=settings.threads,
        max_batch_size=folder.max_batch_size,
        acceleration=acceleration,
    )


def open_on_gpu(folder: ModelFolder, version: int, acceleration: Acceleration) -> AcceleratedEngine:
    """Opens two instances on the first GPU, or those that the configuration asks for.

    Raises:
        InvalidModel: see :class:`AcceleratedEngine`.
        EngineFailed: CUDA does not answer.
    """
    runtime = load_cuda_runtime()
    gpus = acceleration.gpus or (0,) * INSTANCES
    devices: list[Device] = []

    def choose(spec: EngineSpec, device: Device) -> list[Provider]:
        return gpu_providers(acceleration, spec, device.number, device.stream)

    try:
        for gpu in gpus:
            devices.append(CudaDevice(runtime, gpu, pinned=acceleration.pinned))
        return AcceleratedEngine(
            folder.graph(version),
            max_batch_size=folder.max_batch_size,
            devices=devices,
            choose_providers=choose,
            acceleration=acceleration,
        )
    except BaseException:
        for device in devices:
            device.close()
        raise
