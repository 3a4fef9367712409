"""Compiles a numeric loop with Numba: without the GIL, on one thread, kept on disk where possible.

No ``parallel=True``: the server's thread pool is the parallelism.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Loop = TypeVar("Loop", bound=Callable[..., object])
Scalar = TypeVar("Scalar", bound=np.generic)


def compiled(loop: Loop) -> Loop:
    """Decorates ``loop``: machine code on the first call for each combination of argument types."""
    try:
        return cast(Loop, numba.njit(nogil=True, cache=True)(loop))
    except RuntimeError:
        # No writable folder for the cache, as in a read-only container without NUMBA_CACHE_DIR.
        return cast(Loop, numba.njit(nogil=True)(loop))


def read_only(array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """Returns a contiguous view that no one writes through.

    Numba compiles writable and read-only arguments apart; with this there is one kind to warm.
    """
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
