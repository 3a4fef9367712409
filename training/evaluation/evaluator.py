"""Evaluators: each has its data, its network and a share of the images.

There is one in this process, or several processes have one each, with a GPU or some cores of the
CPU. GluonCV's multi-GPU evaluation ran one shard after the other in one thread. Here nobody waits:
only counts come back.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from export.datasets import Sample, SegmentationDataset
from serving.palette import LabelSet
from training.datasets import dataset_labels, open_dataset
from training.datasets.files import resize_pair
from training.evaluation.options import EvaluationOptions
from training.evaluation.scoring import Scores, score
from training.evaluation.sliding_windows import SlidingWindows
from training.evaluation.trained_model import SizedNetworks, TrainedModel
from training.options import TrainOptions

T = TypeVar("T")
# While a GPU works on one image, threads decode, label and count others.
MAX_THREADS = 4


class CenterCrops:
    """A dataset of centre crops of ``height`` x ``width``, images and labels.

    Each image is scaled until it just covers the crop (for a square one: the short edge becomes
    the crop's), linearly, its label by the pixel at the same place. Source: GluonCV's
    ``SegmentationDataset._val_sync_transform``, which scales with Pillow's filter; here it is the
    resize that the network is served with.
    """

    def __init__(self, dataset: SegmentationDataset, height: int, width: int) -> None:
        self.dataset = dataset
        self.height = height
        self.width = width

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, label = self.dataset[index]
        ratio = max(self.height / label.shape[0], self.width / label.shape[1])
        # Rounded up where rounding down would leave a row out.
        rows = max(self.height, math.floor(label.shape[0] * ratio))
        columns = max(self.width, math.floor(label.shape[1] * ratio))
        image, label = resize_pair(image, label, rows, columns)
        top, left = round((rows - self.height) / 2), round((columns - self.width) / 2)
        window = slice(top, top + self.height), slice(left, left + self.width)
        return np.ascontiguousarray(image[window]), np.ascontiguousarray(label[window])

    def name(self, index: int) -> str:
        return self.dataset.name(index)


@dataclass(frozen=True)
class Part:
    """The scores of some images, and the seconds that the network took for each of them."""

    scores: Scores
    seconds: tuple[float, ...]


class Evaluator:
    """An evaluator scores or labels images by their indices.

    Args:
        on_gpu: threads prepare images for a GPU; on the CPU they would only take its cores.
    """

    def __init__(self, options: EvaluationOptions, on_gpu: bool) -> None:
        self.options = options
        self.samples = open_samples(options)
        self.labels: LabelSet = dataset_labels(options.run.dataset, options.run.root)
        self.threads = min(MAX_THREADS, max(1, options.run.workers)) if on_gpu else 1
        self.networks = SizedNetworks(options, len(self.labels.names))
        windows, pixels = None, options.run.pixels
        if options.scales:
            windows = SlidingWindows(
                options.crop, options.run.base_size, pixels, options.scales, options.flip
            )
        self.model = TrainedModel(self.networks, pixels, options.size, options.flip, windows)

    def predict(self, index: int, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Returns the label map of an image; ``index`` is for :data:`scoring.Predict`."""
        return self.model.label(image)

    def score(self, indices: Sequence[int]) -> Part:
        """Scores these images.

        Raises:
            training.evaluation.scoring.ScoringError: one that cannot be scored.
        """
        self.model.seconds.clear()
        scores = score(
            self.samples, self.predict, len(self.labels.names), indices, self.threads,
            self.options.boundary_tolerance,
        )  # fmt: skip
        return Part(scores, tuple(self.model.seconds))

    def write(self, indices: Sequence[int], files: Sequence[Path]) -> None:
        """Writes the predictions of these images, an indexed PNG each, in the dataset's colours."""
        for index, file in zip(indices, files, strict=True):
            save_indexed(self.predict(index, self.samples[index][0]), self.labels, file)

    def close(self) -> None:
        self.networks.close()


def open_samples(options: EvaluationOptions) -> SegmentationDataset:
    """Opens the images of ``options.split`` as ``options.mode`` shows them.

    Raises:
        FileNotFoundError: no dataset there.
    """
    samples = open_dataset(options.run.dataset, options.split, options.run.root)
    if options.mode == "val":
        return CenterCrops(samples, options.crop.height, options.crop.width)
    return samples


def save_indexed(ids: npt.NDArray[np.uint8], labels: LabelSet, path: Path) -> None:
    """Saves class ids as the pixels of an indexed PNG with the colours in its palette."""
    picture = Image.fromarray(ids)
    picture.putpalette([part for color in labels.colors for part in color])
    picture.save(path)


class Evaluators:
    """A group of ``count`` evaluators: one in this process, or each in a process of its own. Close
    it.

    Raises:
        ValueError, FileNotFoundError: as :class:`Evaluator` does.
    """

    def __init__(self, options: EvaluationOptions) -> None:
        gpus = count_gpus(options.run)
        self.on_gpu = gpus > 0
        self.count = options.processes or max(1, gpus)
        self._here: Evaluator | None = None
        self._processes: list[_EvaluatorProcess] = []
        if self.count == 1:
            self._here = Evaluator(options, self.on_gpu)
            return
        try:
            for number in range(self.count):
                self._processes.append(_EvaluatorProcess(options, number, self.count, gpus))
            self._receive(self.count)
        except BaseException:
            self.close()
            raise

    def share(self, indices: Sequence[int]) -> list[Sequence[int]]:
        """Returns every evaluator's part of the images."""
        return [indices[number :: self.count] for number in range(self.count)]

    def map(self, works: Sequence[Callable[[Evaluator], T]]) -> list[T]:
        """Returns the results of at most one work for each evaluator, all done at the same time."""
        if self._here is not None:
            return [work(self._here) for work in works]
        for process, work in zip(self._processes, works, strict=False):
            process.pipe.send(work)
        return self._receive(len(works))

    def close(self) -> None:
        """Ends the processes."""
        if self._here is not None:
            self._here.close()
        for process in self._processes:
            process.close()

    def _receive(self, count: int) -> list[Any]:
        outcomes = [process.receive() for process in self._processes[:count]]
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes


class _EvaluatorProcess:
    """An evaluator in a process of its own, at the other end of a pipe."""

    def __init__(self, options: EvaluationOptions, number: int, count: int, gpus: int) -> None:
        # A fresh process: neither MXNet nor CUDA survives a fork.
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.process = context.Process(
            target=_evaluate, args=(far, options, number, count, gpus), daemon=True
        )
        self.process.start()
        far.close()

    def receive(self) -> object:
        """Returns what the work returned or raised."""
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            return ValueError(
                f"a process that evaluates ended with status {self.process.exitcode}; see its "
                "message above, or try fewer --processes"
            )

    def close(self) -> None:
        self.pipe.close()
        self.process.join()


def _evaluate(
    pipe: Connection, options: EvaluationOptions, number: int, count: int, gpus: int
) -> None:
    """Does what arrives by ``pipe`` until that is closed; sends None when it is ready."""
    # Before any framework is imported.
    os.environ.update(process_environment(number, count, gpus))
    run = replace(options.run, ngpus=min(1, gpus))
    try:
        evaluator = Evaluator(replace(options, run=run), gpus > 0)
    except Exception as error:
        pipe.send(error)
        return
    outcome: object = None
    # The other end is closed, also while this one works.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            pipe.send(outcome)
            work: Callable[[Evaluator], object] = pipe.recv()
            try:
                outcome = work(evaluator)
            except Exception as error:
                outcome = error
    evaluator.close()


def count_gpus(options: TrainOptions) -> int:
    """Returns how many of the GPUs that ``--ngpus`` requests are available."""
    if options.no_cuda or options.ngpus <= 0:
        return 0
    if options.trainer == "torch":
        import torch

        present = torch.cuda.device_count()
    else:
        from export.mxnet_import import mx

        present = mx.context.num_gpus()
    return min(options.ngpus, present)


def process_environment(number: int, count: int, gpus: int) -> dict[str, str]:
    """Returns the environment of process ``number`` of ``count``: one of ``gpus`` GPUs, or its
    share of cores.
    """
    if not gpus:
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = visible.split(",") if visible else [str(k) for k in range(gpus)]
    return {"CUDA_VISIBLE_DEVICES": devices[number % gpus]}
