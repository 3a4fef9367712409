"""Devices and processes of the PyTorch trainer: one process a GPU, or for tests several on the CPU.

``python training/train.py --trainer torch --ngpus 8`` starts them through
``torch.distributed.run``; ``torchrun`` does for several machines.

Source: PyTorch's DistributedDataParallel; batch norm over all devices as in Peng et al.,
arXiv 1711.07240.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from training.options import IDLE_GPU, TrainOptions

# So long a process waits for the others: the first one writes checkpoints by itself, and the images
# of a validation differ in size.
PATIENCE = timedelta(minutes=30)

T = TypeVar("T")


@dataclass(frozen=True)
class Replicas:
    """A place among the processes that train one network together: ``rank`` of ``world``; rank 0
    writes the run.
    """

    rank: int = 0
    world: int = 1

    @property
    def alone(self) -> bool:
        return self.world == 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum over all processes, the same everywhere; without gradients."""
        if self.alone:
            return tensor
        total = tensor.detach().clone()
        distributed.all_reduce(total)
        return total

    def gather(self, item: T) -> list[T]:
        """Returns every process's ``item``, by rank."""
        if self.alone:
            return [item]
        found: list[T] = [item] * self.world
        distributed.all_gather_object(found, item)
        return found

    def broadcast(self, tensor: Tensor) -> None:
        """Overwrites the tensor by the first process's."""
        if not self.alone:
            distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Waits until all processes are here."""
        if not self.alone:
            distributed.barrier()

    def leave(self) -> None:
        """Ends the group, once all are here."""
        if not self.alone and distributed.is_initialized():
            self.wait()
            distributed.destroy_process_group()

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and biased variance ``[C]`` of ``[N,C,H,W]`` over all processes, all of one
        N.

        Gradients flow through all processes. The variance is of deviations from the common mean,
        which loses no digits; that takes a second exchange.
        """
        count = x.numel() // x.shape[1] * self.world
        exact = x if x.dtype == torch.float64 else x.float()
        mean = _sum_with_gradients(exact.sum((0, 2, 3))) / count
        centred = exact - mean[:, None, None]
        variance = _sum_with_gradients((centred * centred).sum((0, 2, 3))) / count
        return mean, variance


ALONE = Replicas()


class _Sum(torch.autograd.Function):
    """A sum whose gradients are summed too: everybody's sum counts in everybody's loss."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _sum_with_gradients(tensor: Tensor) -> Tensor:
    # PyTorch has no types for apply.
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def is_replica() -> bool:
    """Returns whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join_replicas(device: torch.device) -> Replicas:
    """Joins the group that ``torch.distributed.run`` has set up, once per process."""
    if not is_replica():
        return ALONE
    if not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
            distributed.init_process_group("nccl", timeout=PATIENCE, device_id=device)
        else:
            distributed.init_process_group("gloo", timeout=PATIENCE)
    return Replicas(distributed.get_rank(), distributed.get_world_size())


def count_replicas(options: TrainOptions) -> int:
    """Returns how many processes this one has to start for ``--ngpus``: 1 if it works alone."""
    if options.no_cuda or options.ngpus < 2 or is_replica():
        return 1
    present = torch.cuda.device_count()
    if 0 < present < options.ngpus:
        warnings.warn(f"--ngpus {options.ngpus}: only {present} available", stacklevel=2)
    return max(1, min(options.ngpus, present))


def check_replicas(options: TrainOptions, world: int) -> None:
    """Raises ValueError where ``world`` processes cannot train with these options: the batch cannot
    be shared out equally, or a compiled network would have to wait for other processes."""
    if options.eval_only:
        return
    if world > 1 and options.syncbn and options.compile:
        raise ValueError(
            "with --syncbn the processes wait for each other within the network, which --compile "
            "cannot trace: leave one of them out"
        )
    parts = world * options.accumulate
    if options.batch_size % parts:
        raise ValueError(
            f"--batch-size {options.batch_size} is the whole batch, shared out among {world} "
            f"processes x {options.accumulate} accumulated parts: give a multiple of {parts}"
        )


def start_replicas(count: int, arguments: list[str]) -> None:
    """Replaces this process by ``count`` of them; ``arguments`` are the script and its own."""
    # Else each is given one thread, and a warning.
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    sys.stdout.flush()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={count}", *arguments]  # fmt: skip
    os.execv(sys.executable, command)


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turns PyTorch's out-of-memory error into a ValueError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            "the GPU is out of memory: split the batch with --accumulate N, or take a smaller "
            "--batch-size or --crop-size, or --dtype bfloat16"
        ) from error


def choose_device(options: TrainOptions) -> torch.device:
    """Returns the GPU, of several processes one each, or the CPU if no GPU is wanted or available.

    Raises:
        ValueError: more processes on this machine than GPUs.
    """
    if options.no_cuda:
        return torch.device("cpu")
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if options.ngpus <= 0 and not is_replica():
        if present:
            warnings.warn(IDLE_GPU, stacklevel=2)
        return torch.device("cpu")
    if not present:
        warnings.warn(
            f"--ngpus {options.ngpus}: no GPU is available, training on the CPU", stacklevel=2
        )
        return torch.device("cpu")
    if not is_replica():
        return torch.device("cuda")
    index = int(os.environ["LOCAL_RANK"])
    if index >= present:
        raise ValueError(
            f"process {index + 1} on this machine has no GPU, there are {present}: start at most "
            "that "
            "many processes, or train with --no-cuda"
        )
    return torch.device("cuda", index)
