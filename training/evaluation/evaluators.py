"""Evaluators in one process, or in several that have a GPU each (on the CPU: some cores each).

GluonCV's multi-GPU evaluation ran one shard after the other in one thread. Processes wait for
nobody: each has its network and every n-th image, and only counts come back.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import TypeVar

from training.evaluation.evaluator import Evaluator
from training.evaluation.weights_options import EvaluationOptions
from training.options import TrainOptions

T = TypeVar("T")

# Of this process, where it is one of several.
_evaluator: Evaluator | None = None


class Evaluators:
    """``count`` evaluators: this process itself, or so many others. Close it.

    Raises:
        ValueError, FileNotFoundError: as :class:`training.evaluation.evaluator.Evaluator` does.
    """

    def __init__(self, options: EvaluationOptions) -> None:
        gpus = count_gpus(options.run)
        self.on_gpu = gpus > 0
        self.count = options.processes or max(1, gpus)
        self._here: Evaluator | None = None
        self._pools: list[ProcessPoolExecutor] = []
        if self.count == 1:
            self._here = Evaluator(options, self.on_gpu)
            return
        # Fresh ones: neither MXNet nor CUDA survives a fork. A pool each, so that everyone works.
        context = multiprocessing.get_context("spawn")
        self._pools = [ProcessPoolExecutor(1, context) for _ in range(self.count)]
        try:
            starts = [
                pool.submit(_start, options, number, self.count, gpus)
                for number, pool in enumerate(self._pools)
            ]
            for start in starts:
                start.result()
        except BaseException:
            self.close()
            raise

    def share(self, indices: range) -> list[range]:
        """Every evaluator's part of the images."""
        return [indices[number :: self.count] for number in range(self.count)]

    def map(self, works: Sequence[Callable[[Evaluator], T]]) -> list[T]:
        """The results of at most one work for each evaluator, all at the same time."""
        if self._here is not None:
            return [work(self._here) for work in works]
        running = [pool.submit(_work, work) for pool, work in zip(self._pools, works, strict=False)]
        return [future.result() for future in running]

    def close(self) -> None:
        """Ends the processes."""
        if self._here is not None:
            self._here.close()
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)


def count_gpus(options: TrainOptions) -> int:
    """How many of the GPUs that ``--ngpus`` asks for are here."""
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
    """What process ``number`` of ``count`` may use: one of ``gpus`` GPUs, or its share of cores."""
    if not gpus:
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = visible.split(",") if visible else [str(k) for k in range(gpus)]
    return {"CUDA_VISIBLE_DEVICES": devices[number % gpus]}


def _start(options: EvaluationOptions, number: int, count: int, gpus: int) -> None:
    """In the new process, before it imports any framework."""
    global _evaluator
    os.environ.update(process_environment(number, count, gpus))
    run = replace(options.run, ngpus=min(1, gpus))
    _evaluator = Evaluator(replace(options, run=run), gpus > 0)


def _work(work: Callable[[Evaluator], T]) -> T:
    assert _evaluator is not None
    return work(_evaluator)
