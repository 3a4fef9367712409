"""Describes what is timed: one network on one engine, its data on the device or on the host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from export.symbols.find import NetworkName

Images = npt.NDArray[np.uint8]


class EngineMissing(Exception):
    """Raised when an engine cannot run here; the message says what is missing."""


@dataclass(frozen=True)
class Case:
    """One network in one size, precision and batch size.

    Attributes:
        title: for tables.
        network: what is built; None where ``graph`` is all that there is.
        graph: an ONNX file of the contract; None where the engine builds the network itself.
        output: ``logits`` or ``mask``; None takes what the server would fetch.
        threads: of the CPU.
        graphs: whether the device replays captured runs, where it can.
    """

    title: str
    network: NetworkName | None
    classes: int
    height: int
    width: int
    precision: str
    batch: int
    graph: Path | None = None
    output: str | None = None
    threads: int = 1
    graphs: bool = True

    def images(self) -> Images:
        """Returns noise, uint8 ``[batch,H,W,3]``: no network's time depends on what it sees."""
        shape = (self.batch, self.height, self.width, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class Subject(Protocol):
    """A case on an engine. Both calls return only once the device has finished.

    Attributes:
        engine: its name, with the device: ``onnxruntime-cuda``.
        on_gpu: whether the time of an image is a ``t_gpu``.
        fetched: what the graph is cut to.
        layout: what else decides its speed: captured graphs, memory format.
        versions: of the engine.
    """

    engine: str
    on_gpu: bool
    fetched: str
    layout: str
    versions: str

    def compute(self) -> None:
        """Runs on images that are on the device; the result stays there."""
        ...

    def run(self) -> None:
        """Runs from pixels in the host's memory to a result in the host's memory."""
        ...

    def close(self) -> None:
        """Frees the device."""
        ...
