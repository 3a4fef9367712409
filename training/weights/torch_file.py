"""Reads a PyTorch ``.pth`` file without executing what a pickle may say."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.weights.errors import WeightsError

# Where training scripts put the weights beside an epoch and an optimizer.
NESTED = ("state_dict", "model_state_dict", "model", "net", "state")
# What DataParallel and DistributedDataParallel put in front of every name.
WRAPPER = "module."
COUNTER = "num_batches_tracked"


def read_torch_file(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays by name; wrappers are left out, and batch norms' counters.

    Raises:
        WeightsError: no PyTorch, no such file, or one that holds anything but tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{path} is PyTorch's; reading it needs: pip install 'segserve[torch]'"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, or is no PyTorch file, and pickles are not executed "
            "here; load it where you trust it and save its weights alone: "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds no weights by name (a state_dict)")
    arrays = {}
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise WeightsError(f"{path}: {name!r} is no tensor")
        if not str(name).endswith(COUNTER):
            arrays[str(name).removeprefix(WRAPPER)] = value.detach().float().numpy()
    return arrays
