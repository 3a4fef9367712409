"""Measures how fast one engine runs one network, without a server around it.

The time of an image is from the call to the end of the device's work: every engine is synchronised
before the clock is read. On a GPU it is measured twice: with the image and the result on the
device, and with both copied.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from dataclasses import dataclass

import onnxruntime

from benchmarks.engines.onnxruntime import OnnxSubject
from benchmarks.engines.subject import Case, EngineMissing, Subject
from benchmarks.machine import Machine, read_machine
from benchmarks.timing import time_runs
from serving.engines.acceleration import Acceleration
from serving.engines.onnxruntime import CUDA

ENGINES = ("auto", "cpu", "cuda", "tensorrt", "torch", "mxnet")


@dataclass(frozen=True)
class Published:
    """A time of an image that somebody else published."""

    ms: float
    source: str


# GluonCV's own script reads the clock before MXNet's asynchronous engine has finished.
_GLUONCV = "GluonCV on one V100, MXNet, clock read without synchronisation"
PUBLISHED_TIMES = {
    ("icnet_resnet50_citys", "1024x2048"): Published(36.9, _GLUONCV),
    ("icnet_resnet50_mhpv1", "768x768"): Published(49.9, _GLUONCV),
}


@dataclass(frozen=True)
class Speed:
    """One measurement: milliseconds; those named ``per_image`` are divided by the batch size.

    Attributes:
        with_copies_ms: an image with the copies to the device and back; on a CPU the same time.
        joules_per_image: of the GPU alone, copies left out; None where NVML does not report it.
        published: by others for this network and size.
    """

    model: str
    weights: str
    engine: str
    precision: str
    fetched: str
    layout: str
    size: str
    batch: int
    threads: int
    warmup: int
    runs: int
    per_image_ms: float
    fps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    with_copies_ms: float
    cpu_per_image_ms: float
    joules_per_image: float | None
    on_gpu: bool
    versions: str
    published: Published | None
    machine: Machine

    @property
    def symbol(self) -> str:
        """Returns ``t_gpu`` or ``t_cpu``, the published tables' names of the time of an image."""
        return "t_gpu" if self.on_gpu else "t_cpu"

    def lines(self) -> list[str]:
        """Returns the lines for the terminal."""
        how = f" ({self.layout})" if self.layout else ""
        lines = [
            f"{self.model}, {self.size}, batch {self.batch}, {self.precision}, {self.weights}",
            f"{self.engine}{how}, {self.threads} threads; graph cut to {self.fetched}",
            f"{self.symbol} {self.per_image_ms:.2f} ms   {self.fps:.2f} fps",
            f"a run of {self.batch}: p50 {self.p50_ms:.1f} ms, p95 {self.p95_ms:.1f} ms,"
            f" p99 {self.p99_ms:.1f} ms ({self.runs} runs after {self.warmup})",
        ]
        if self.on_gpu:
            lines.append(f"with the copies in and out: {self.with_copies_ms:.2f} ms an image")
        if self.joules_per_image is not None:
            lines.append(f"energy of the GPU: {self.joules_per_image:.3f} J an image")
        lines.append(f"CPU time an image {self.cpu_per_image_ms:.1f} ms; {self.versions}")
        if self.published is not None:
            lines.append(f"published: {self.published.ms:.1f} ms ({self.published.source})")
        return lines


def measure_speed(subject: Subject, case: Case, seconds: float, warmup: int, weights: str) -> Speed:
    """Times a subject for about ``seconds``, and on a GPU once more with the copies."""
    machine = read_machine()
    meter = EnergyMeter()
    for _ in range(warmup):
        subject.compute() if subject.on_gpu else subject.run()
    before = meter.joules() if subject.on_gpu else None
    call: Callable[[], object] = subject.compute if subject.on_gpu else subject.run
    timing = time_runs(call, seconds, warm_runs=0)
    after = meter.joules() if subject.on_gpu else None
    count = len(timing.walls) * case.batch
    per_image = timing.total / count * 1000
    copied = per_image
    if subject.on_gpu:
        copies = time_runs(subject.run, seconds)
        copied = copies.total / len(copies.walls) / case.batch * 1000
    size = f"{case.height}x{case.width}"
    return Speed(
        model=case.title,
        weights=weights,
        engine=subject.engine,
        precision=case.precision,
        fetched=subject.fetched,
        layout=subject.layout,
        size=size,
        batch=case.batch,
        threads=case.threads,
        warmup=warmup,
        runs=len(timing.walls),
        per_image_ms=per_image,
        fps=count / timing.total,
        p50_ms=timing.wall_ms(50),
        p95_ms=timing.wall_ms(95),
        p99_ms=timing.wall_ms(99),
        with_copies_ms=copied,
        cpu_per_image_ms=timing.cpu / count * 1000,
        joules_per_image=None if before is None or after is None else (after - before) / count,
        on_gpu=subject.on_gpu,
        versions=f"{subject.versions}, Python {platform.python_version()}",
        published=PUBLISHED_TIMES.get((case.title, size)),
        machine=machine,
    )


class EnergyMeter:
    """Reads the energy that a GPU has consumed, where NVML reports it (Volta and later).

    Source: NVML API Reference, nvmlDeviceGetTotalEnergyConsumption."""

    def __init__(self, number: int = 0, load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> None:
        self._library: ctypes.CDLL | None = None
        self._device = ctypes.c_void_p()
        try:
            library = load("libnvidia-ml.so.1")
        except OSError:
            return
        found = library.nvmlInit_v2() == 0 and (
            library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(self._device)) == 0
        )
        self._library = library if found else None

    def joules(self) -> float | None:
        """Returns the joules since the driver was loaded; None where NVML does not report them."""
        if self._library is None:
            return None
        spent = ctypes.c_ulonglong()
        ask = self._library.nvmlDeviceGetTotalEnergyConsumption
        if ask(self._device, ctypes.byref(spent)):
            return None
        return spent.value / 1000


def open_subject(case: Case, engine: str, acceleration: Acceleration) -> Subject:
    """Opens a case on an engine of ``ENGINES``.

    Raises EngineMissing where it cannot run here.
    """
    if engine == "auto":
        engine = "cuda" if CUDA in onnxruntime.get_available_providers() else "cpu"
    if engine == "torch":
        try:
            from benchmarks.engines.torch import TorchSubject
        except ImportError as error:
            raise EngineMissing(f"no PyTorch here ({error}); pip install torch") from error
        return TorchSubject(case)
    if engine == "mxnet":
        from benchmarks.engines.mxnet import MxnetSubject

        return MxnetSubject(case)
    return OnnxSubject(case, engine, acceleration)


def check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError where ``value`` is none of ``known``."""
    if value not in known:
        raise ValueError(f"{option} {value!r} is not valid: expected one of {', '.join(known)}")
