"""The one place that imports MXNet 1.9.1, which is older than the Python and NumPy around it.

Everything else does ``from export.mxnet_import import mx``. Importing it raises
``MXNetMissing`` (with the remedy) where MXNet is not installed.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

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
    message = lines[starts[-1] :] if starts else [x for x in lines if not x.startswith(stack)]
    said = message[0] if message else type(error).__name__
    said = said.removeprefix("MXNetError: ").removesuffix(", Possible Arguments:")
    where = lines[-1] if lines and lines[-1].startswith(", in operator") else ""
    return said + where


__all__ = ["MXNetMissing", "mx", "mxnet_reason"]


def compare(folder: Path) -> None:
    """Runs every image through the symbol on the CPU."""
    symbol = mx.sym.load(str(folder / "symbol.json"))
    images = np.load(folder / "images.npy")
    with np.load(folder / "pixels.npz") as seen:
        scaled = images.astype(np.float32) / np.float32(255)
        data = (scaled - seen["mean"].astype(np.float32)) / seen["std"].astype(np.float32)
        data = np.ascontiguousarray(
            (data[..., ::-1] if seen["bgr"] else data).transpose(0, 3, 1, 2)
        )
    executor = _bind(symbol, folder / "network.params", {"data": mx.nd.array(data[:1])})
    for number, image in enumerate(data):
        full, logits = executor.forward(is_train=False, data=mx.nd.array(image[None]))
        labels = full.asnumpy().argmax(1).astype(np.uint16)
        np.save(folder / f"logits{number}.npy", logits.asnumpy())
        np.save(folder / f"labels{number}.npy", labels)


def load(symbol: Path, params: Path, name: str, shape: tuple[int, ...]) -> None:
    """Binds a symbol and runs it, so that whatever MXNet has against it comes to light."""
    image = mx.nd.zeros(shape, dtype=np.uint8)
    executor = _bind(mx.sym.load(str(symbol)), params, {name: image})
    for output in executor.forward(is_train=False):
        output.wait_to_read()


def _bind(symbol: Any, params: Path, inputs: dict[str, Any]) -> Any:
    arrays = mx.nd.load(str(params))
    values = {name.partition(":")[2]: array for name, array in arrays.items()} | inputs
    names = [*symbol.list_arguments(), *symbol.list_auxiliary_states()]
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"the symbol reads {missing[0]!r}, which is not among the parameters")
    return symbol.bind(
        mx.cpu(),
        {name: values[name] for name in symbol.list_arguments()},
        aux_states={name: values[name] for name in symbol.list_auxiliary_states()},
        grad_req="null",
    )


def main(arguments: list[str]) -> int:
    """Runs one of the two commands; returns the exit code."""
    command, *rest = arguments
    try:
        if command == "compare":
            compare(Path(rest[0]))
        else:
            symbol, params, name, *lengths = rest
            load(Path(symbol), Path(params), name, tuple(map(int, lengths)))
    except (mx.base.MXNetError, ValueError, TypeError) as error:
        print(mxnet_reason(error), file=sys.stderr)
        return 1
    print(mx.__version__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
