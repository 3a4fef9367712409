"""Decoders with one fault each: what a test of decoders must notice."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidImage

Pixels = npt.NDArray[np.uint8]


def crash(data: bytes, *, max_megapixels: float) -> Pixels:
    """Dies of a signal."""
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def die_of_text(data: bytes, *, max_megapixels: float) -> Pixels:
    """Dies of a PNG with a text chunk, and reads nothing else."""
    if b"tEXt" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    raise InvalidImage("it is broken")


def hang(data: bytes, *, max_megapixels: float) -> Pixels:
    """Never comes back."""
    time.sleep(3600)
    raise AssertionError


def raise_another_error(data: bytes, *, max_megapixels: float) -> Pixels:
    """An error that says nothing to the caller."""
    raise IndexError("list index out of range")


def leave_unwritten(data: bytes, *, max_megapixels: float) -> Pixels:
    """Pixels as the memory happened to be."""
    return np.empty((200, 300, 3), np.uint8)


def take_memory(data: bytes, *, max_megapixels: float) -> Pixels:
    """Much memory for a moment."""
    np.ones(200 << 20, np.uint8)
    raise InvalidImage("it is broken")


def refuse(data: bytes, *, max_megapixels: float) -> Pixels:
    """An error as the server means it."""
    raise InvalidImage("it is broken")
