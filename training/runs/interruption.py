"""SIGINT (Ctrl-C) and SIGTERM end a run after a step, not within it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"\ntrain.py: saving and stopping after this step; again: stop now without saving\n"


class Interrupted(Exception):
    """A signal ended the run, which has saved where it continues.

    Attributes:
        signal_number: the signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class Interruption:
    """A context manager in which a signal is only noted; the same one again acts as usual.

    A terminal sends Ctrl-C to all of several processes, and their launcher then SIGTERM: two kinds
    are one wish. Outside the main thread signals are left alone.

    Args:
        agree: returns whether it is so in any of the processes that train together.
        prints: reports a signal's effect.
    """

    def __init__(self, agree: Callable[[bool], bool], prints: bool) -> None:
        self.agree = agree
        self.prints = prints
        self.received: int | None = None
        self.agreed = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def is_agreed(self) -> bool:
        """Returns whether any process received a signal; all call this at the same places."""
        self.agreed = self.agree(self.received is not None)
        return self.agreed

    def check(self) -> None:
        """Raises Interrupted if the processes have agreed to end."""
        if self.agreed:
            raise Interrupted(self.received or signal.SIGTERM)

    def check_here(self) -> None:
        """Raises Interrupted if this process received a signal; the others do not know it yet."""
        if self.received is not None:
            raise Interrupted(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            if self.prints:
                # print() is not allowed here: it may be what was interrupted.
                os.write(2, NOTICE)
        elif self.received == number:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
