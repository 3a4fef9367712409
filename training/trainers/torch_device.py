"""The device that this process trains on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from training.options import IDLE_GPU, TrainOptions
from training.trainers.torch_replicas import is_replica


@contextmanager
def tell_remedy_of_memory() -> Iterator[None]:
    """Turns PyTorch's out-of-memory error into a ValueError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            "the GPU has no memory left: split the batch with --accumulate N, or take a smaller "
            "--batch-size or --crop-size, or --dtype bfloat16"
        ) from error


def choose_device(options: TrainOptions) -> torch.device:
    """The GPU, of several processes one each, or the CPU where none is wanted or there is none.

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
        warnings.warn(f"--ngpus {options.ngpus}: no GPU here, training on the CPU", stacklevel=2)
        return torch.device("cpu")
    if not is_replica():
        return torch.device("cuda")
    index = int(os.environ["LOCAL_RANK"])
    if index >= present:
        raise ValueError(
            f"process {index + 1} on this machine has no GPU, there are {present}: start no more "
            "processes than that, or train with --no-cuda"
        )
    return torch.device("cuda", index)
