"""Arrays by name, from any of the file formats that weights come in."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.errors import InvalidParams
from export.symbols.params import read_params
from training.weights.errors import WeightsError
from training.weights.tensor_bundle import INDEX_ENDING, read_bundle
from training.weights.torch_file import read_torch_file

Arrays = dict[str, npt.NDArray[np.generic]]
TORCH_ENDINGS = (".pth", ".pt", ".tar")
# A checkpoint's momenta take as much space as its weights.
OPTIMIZER_SLOTS = ("/Momentum", "/Adam", "/Adam_1", "/ExponentialMovingAverage")


def stored_file(path: Path) -> Path:
    """The file itself; of a TensorFlow checkpoint's prefix, its index. Need not be there."""
    return path if path.is_file() else path.with_name(path.name + INDEX_ENDING)


def read_arrays(path: Path) -> Arrays:
    """Of a ``.pth``, ``.params`` or ``.npz`` file, or of a TensorFlow checkpoint (its prefix or its
    ``.index`` file; optimizers' variables are left out).

    Raises WeightsError naming the file.
    """
    if path.suffix == INDEX_ENDING or path.with_name(path.name + INDEX_ENDING).is_file():
        return read_bundle(path, lambda name: not name.endswith(OPTIMIZER_SLOTS))
    if not path.is_file():
        raise WeightsError(f"no file {path}")
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
        f"{path}: not known by its ending; .pth, .params, .npz and a checkpoint's .index are"
    )


def _read_npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise WeightsError(f"{path}: {error}") from error
