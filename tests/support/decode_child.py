"""Decodes images in a process of its own: a program that :mod:`decoding` starts and talks to.

A request on stdin is four bytes of length and a file; an answer on stdout is ``_HEAD`` and its
payload. Nothing else may write to stdout, so the program keeps it for itself.
"""

from __future__ import annotations

import importlib
import os
import struct
import sys
import time
import traceback
from pathlib import Path

# Status, CPU seconds, resident bytes and address space taken meanwhile, length of the payload.
HEAD = struct.Struct("<BdqqI")
PIXELS, REFUSED, WRONG_ERROR = range(3)
REFUSALS = ("InvalidImage", "TooLarge", "UnsupportedImageFormat")


def _peaks() -> tuple[int, int]:
    """The largest resident set since it was reset, and the largest address space ever, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split()[0]: int(line.split()[1]) << 10 for line in lines if line.endswith("kB")}
    return found["VmHWM:"], found["VmPeak:"]


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        # A kernel without it keeps the largest of all so far: then only new records count.
        return


def main() -> None:
    """Arguments: MODULE:FUNCTION of the decoder, its largest size in megapixels."""
    target, largest = sys.argv[1], float(sys.argv[2])
    module, name = target.split(":")
    decode = getattr(importlib.import_module(module), name)
    answers = os.fdopen(os.dup(1), "wb")
    # Lines that a library prints must not come between the answers.
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    while head := requests.read(4):
        data = requests.read(struct.unpack("<I", head)[0])
        _reset_peak()
        before, began = _peaks(), time.process_time()
        try:
            pixels = decode(data, max_megapixels=largest)
            payload = struct.pack("<II", *pixels.shape[:2]) + pixels.tobytes()
            status = PIXELS
            del pixels
        except Exception as error:
            kinds = {kind.__name__ for kind in type(error).__mro__}
            status = REFUSED if kinds & set(REFUSALS) else WRONG_ERROR
            shown = f"{type(error).__name__}: {error}" if status == REFUSED else _trace(error)
            payload = shown.encode("utf-8", "backslashreplace")
        cpu_s, after = time.process_time() - began, _peaks()
        grown = [max(0, late - early) for late, early in zip(after, before, strict=True)]
        answers.write(HEAD.pack(status, cpu_s, *grown, len(payload)) + payload)
        answers.flush()


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


if __name__ == "__main__":
    main()
