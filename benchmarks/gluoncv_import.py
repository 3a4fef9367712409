"""The one place that imports GluonCV, which refuses to be imported beside PyTorch 2.

It needs PyTorch for none of the networks used here, so ``torch`` is hidden from it while it is
being imported; what has been imported before stays as it is.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
import warnings
from types import ModuleType

# Importing it first sets what MXNet needs before GluonCV imports MXNet itself.
from export.mxnet_import import mx


class _HiddenTorch(importlib.abc.MetaPathFinder):
    """Makes ``import torch`` fail as if it were not installed."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("torch is hidden from GluonCV", name=name)


def import_gluoncv(module: str) -> ModuleType:
    """Imports ``gluoncv.<module>``, for example ``model_zoo.icnet``.

    Raises:
        ModuleNotFoundError: no GluonCV, or no such module of it.
    """
    hidden = _HiddenTorch()
    sys.meta_path.insert(0, hidden)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(f"gluoncv.{module}")
    finally:
        sys.meta_path.remove(hidden)


__all__ = ["import_gluoncv", "mx"]
