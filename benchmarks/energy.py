"""The energy that a GPU has taken, from NVML, where it tells (Volta and later).

Source: NVML API Reference, nvmlDeviceGetTotalEnergyConsumption.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable


class EnergyMeter:
    """``joules()`` is the difference between two calls' worth; None where NVML does not tell."""

    def __init__(self, number: int = 0, load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> None:
        self._library: ctypes.CDLL | None = None
        self._device = ctypes.c_void_p()
        try:
            library = load("libnvidia-ml.so.1")
        except OSError:
            return
        found = library.nvmlInit_v2() == 0 and (
            library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(self._device)) == 0
        )
        self._library = library if found else None

    def joules(self) -> float | None:
        """Since the driver was loaded."""
        if self._library is None:
            return None
        spent = ctypes.c_ulonglong()
        ask = self._library.nvmlDeviceGetTotalEnergyConsumption
        if ask(self._device, ctypes.byref(spent)):
            return None
        return spent.value / 1000
