"""The one place that imports MXNet 1.9.1, which is older than the Python and NumPy around it.

Everything else does ``from export.mxnet_import import mx``. Importing it raises
``MXNetMissing`` (with the remedy) where MXNet is not installed.
"""

from __future__ import annotations

import os
import warnings

import numpy as np

# oneDNN's primitive cache and OpenMP bind at import, so these are set before it.
os.environ.setdefault("MXNET_SAFE_ACCUMULATION", "1")
os.environ.setdefault("MXNET_CPU_WORKER_NTHREADS", "1")
# MXNet alone would take half of the cores, counting on hyperthreads.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

# Removed from NumPy in 1.24; MXNet 1.9.1 reads it while importing.
if "bool" not in np.__dict__:
    np.bool = np.bool_  # type: ignore[attr-defined]


class MXNetMissing(ImportError):
    """MXNet is not installed."""


try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        import mxnet as mx
except ModuleNotFoundError as error:
    raise MXNetMissing(
        "MXNet is not installed; install the extra: pip install 'segserve[training]' "
        "(Python 3.11 at most, x86-64 Linux)"
    ) from error

# gluon's own utilities warn on import-time regex escapes and at run time on numpy aliases.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"mxnet(\..*)?")


def mxnet_reason(error: Exception) -> str:
    """Returns what MXNet says is wrong as one line, without its list of arguments and its stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith("MXNetError: ")]
    stack = ("Traceback ", "File ", ", in operator")
    told = lines[starts[-1] :] if starts else [x for x in lines if not x.startswith(stack)]
    said = told[0] if told else type(error).__name__
    said = said.removeprefix("MXNetError: ").removesuffix(", Possible Arguments:")
    where = lines[-1] if lines and lines[-1].startswith(", in operator") else ""
    return said + where


__all__ = ["MXNetMissing", "mx", "mxnet_reason"]
