"""The protocol that every engine implements; the batcher knows no more of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction
from serving.palette import label_type


@dataclass(frozen=True)
class EngineSpec:
    """The shapes that go into an engine and come out, and how many runs it takes.

    Attributes:
        size: static height and width of the network's input.
        num_classes: channels of the logits.
        logits_size: height and width of the logits; None where the graph gives labels alone.
        max_batch_size: images a run takes at most.
        instances: runs that may be in progress at the same time.
        precision: ``fp32``, ``fp16``, ``int8``, or ``bf16`` where a file of one of the first two is
            run so.
        wide: where the graph gives labels alone, whether they are uint16.
    """

    size: Size
    num_classes: int
    logits_size: Size | None
    max_batch_size: int
    instances: int
    precision: str
    wide: bool = False

    @property
    def label_type(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Returns the type of a label map's pixels."""
        return np.dtype(np.uint16) if self.wide else label_type(self.num_classes)


class Engine(Protocol):
    """An engine that runs batches; worker threads call ``run``, ``spec.instances`` at a time."""

    @property
    def spec(self) -> EngineSpec: ...

    @property
    def name(self) -> str:
        """Returns the engine's name in metrics: ``onnxruntime-cpu``, ..."""
        ...

    def warm(self) -> None:
        """Runs every batch size once, so that the first request meets no lazy work."""
        ...

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        """Infers uint8 ``[n,H,W,3]`` RGB, ``1 <= n <= max_batch_size``.

        Raises:
            EngineFailed: the run failed; the engine can still be used.
        """
        ...

    def close(self) -> None:
        """Frees what the engine holds; no run may be in progress."""
        ...


@runtime_checkable
class LabelEngine(Protocol):
    """An engine that can take the argmax where it infers, far from the host's memory."""

    @property
    def gives_labels(self) -> bool:
        """Returns whether ``run_labels`` can be called for this model."""
        ...

    def run_labels(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        """Runs a batch like ``Engine.run`` and returns ``mask`` instead of ``logits``, an id a
        pixel.

        Raises:
            EngineFailed: the run failed; the engine can still be used.
        """
        ...
