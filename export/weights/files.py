"""Arrays by name, from any of the file formats that weights come in; no pickle is executed."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.errors import InvalidParams, WeightsError
from export.symbols.params import read_params
from export.weights.tf_checkpoint import INDEX_ENDING, read_bundle

Arrays = dict[str, npt.NDArray[np.generic]]
TORCH_ENDINGS = (".pth", ".pt", ".tar")
# A checkpoint's momenta take as much space as its weights.
OPTIMIZER_SLOTS = ("/Momentum", "/Adam", "/Adam_1", "/ExponentialMovingAverage")


def stored_file(path: Path) -> Path:
    """Returns the file itself; of a TensorFlow checkpoint's prefix, its index. Need not be
    there."""
    return path if path.is_file() else path.with_name(path.name + INDEX_ENDING)


def read_arrays(path: Path) -> Arrays:
    """Reads a ``.pth``, ``.params`` or ``.npz`` file, or a TensorFlow checkpoint (its prefix or its
    ``.index`` file; optimizers' variables are left out).

    Raises WeightsError naming the file.
    """
    if path.suffix == INDEX_ENDING or path.with_name(path.name + INDEX_ENDING).is_file():
        return read_bundle(path, lambda name: not name.endswith(OPTIMIZER_SLOTS))
    if not path.is_file():
        raise WeightsError(f"{path} does not exist: expected a file of weights")
    if path.suffix in TORCH_ENDINGS:
        return read_torch_file(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".params":
        try:
            parameters = read_params(path)
        except InvalidParams as error:
            raise WeightsError(str(error)) from error
        return {**parameters.arguments, **parameters.auxiliary}
    raise WeightsError(
        f"{path} has an unknown ending: expected .pth, .pt, .tar, .params, .npz or a checkpoint's"
        " .index"
    )


def _read_npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise WeightsError(f"{path}: {error}") from error


# Where training scripts put the weights beside an epoch and an optimizer.
NESTED = ("state_dict", "model_state_dict", "model", "net", "state")
# What DataParallel and DistributedDataParallel put in front of every name.
WRAPPER = "module."
COUNTER = "num_batches_tracked"


def read_torch_file(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Returns arrays by name, without wrappers and batch norms' counters.

    Raises:
        WeightsError: PyTorch is not installed, or the file is missing or holds more than tensors.
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
            f"{path} holds more than tensors, or is not a PyTorch file, and pickles are not "
            "executed here; load it where you trust it and save its weights alone: "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} does not hold weights by name: expected a state_dict")
    arrays = {}
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise WeightsError(f"{path}: {name!r} is not a tensor")
        if not str(name).endswith(COUNTER):
            arrays[str(name).removeprefix(WRAPPER)] = value.detach().float().numpy()
    return arrays
