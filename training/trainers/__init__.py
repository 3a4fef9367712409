"""Trainers: what the training loop needs of a framework, once on MXNet and once on PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from training.loader import WHOLE, Batch, Shard
from training.options import TrainOptions

T = TypeVar("T")


class Learner(Protocol):
    """A network with its loss and optimizer, on one or several devices.

    A learner that trains alone, in one process on one device, inherits what several would share.
    """

    @property
    def shard(self) -> Shard:
        """Returns the rows of every batch that this process's ``step`` takes; only the first
        process writes the run.
        """
        return WHOLE

    def wait(self) -> None:
        """Waits until all processes that train this network are here."""
        return

    def agree(self, wish: bool) -> bool:
        """Returns whether any process wishes it, the same in all of them; all have to call this."""
        return wish

    def gather(self, item: T) -> list[T]:
        """Returns every process's ``item``, by rank, the same in all of them; all have to call
        this.
        """
        return [item]

    def close(self) -> None:
        """Leaves the other processes once all are here."""
        return

    def start(self, class_weights: npt.NDArray[np.float32]) -> None:
        """Makes loss and optimizer. ``class_weights`` float32 ``[C]``."""
        ...

    def begin_step(self, epoch: int, iteration: int) -> None:
        """Seeds what is random in the network by the place in the run, both from 0: a resumed run
        draws what an uninterrupted one would have drawn.
        """
        ...

    def step(self, batch: Batch, rate: float) -> float:
        """Takes one update at a learning rate; returns the loss, a mean over the batch.

        Raises:
            NonFiniteStep: loss, a gradient or a running statistic is not finite. Nothing has
                changed then: no weight, momentum, average or statistic.
        """
        ...

    def logits(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Infers ``[C,h,w]`` at the head's resolution from ``[3,H,W]`` as the network sees it."""
        ...

    @property
    def devices(self) -> int:
        """Returns the number of images that ``logits_together`` works on at once in this
        process."""
        return 1

    def logits_together(
        self, images: Sequence[npt.NDArray[np.float32]]
    ) -> list[npt.NDArray[np.float32]]:
        """Returns ``logits`` of at most ``devices`` images, each on a device of its own."""
        return [self.logits(image) for image in images]

    def align(self) -> None:
        """Gives all devices of all processes the running statistics that are written. Without
        synchronisation each has its own; afterwards all answer alike. All have to call this.
        """
        ...

    def write_symbol(self, path: Path) -> None:
        """Saves the network's graph as MXNet's ``symbol.json``, with all its outputs."""
        ...

    def write_parameters(self, path: Path) -> None:
        """Saves the weights in MXNet's format, ``arg:``/``aux:`` and the symbol's names."""
        ...

    def read_parameters(self, path: Path, partial: bool = False) -> tuple[str, ...]:
        """Loads what ``write_parameters`` wrote, by whichever framework.

        ``partial`` takes the arrays that fit (a network with other classes, to fine-tune) and
        leaves the others as they are; returns their names.

        Raises:
            FileNotFoundError: no such file.
            ValueError: names or shapes are not the network's; they are named. With ``partial``:
                none fits.
        """
        ...

    def write_optimizer(self, path: Path) -> None:
        """Saves the optimizer's states, such as momenta."""
        ...

    def read_optimizer(self, path: Path) -> None:
        """Loads what ``write_optimizer`` wrote."""
        ...


def make_learner(options: TrainOptions, num_classes: int) -> Learner:
    """Makes the network and what trains it; only the chosen framework is imported.

    Raises:
        ValueError: the framework isn't installed, or the options do not fit the network.
    """
    if options.trainer == "torch":
        if find_spec("torch") is None:
            raise ValueError(
                "--trainer torch needs PyTorch: pip install 'segserve[torch]', or the build for "
                "your GPU"
            )
        from training.trainers.torch_trainer import TorchLearner

        return TorchLearner(options, num_classes)
    if find_spec("mxnet") is None:
        raise ValueError(
            "--trainer gluon needs MXNet: pip install 'segserve[training]' (Python 3.11 at most, "
            "x86-64 Linux); --trainer torch --symbol FILE does without"
        )
    from training.trainers.gluon_trainer import GluonLearner

    return GluonLearner(options, num_classes)
