"""Being told to end: SIGINT (Ctrl-C) and SIGTERM end a run at the next step, not within one."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOLD = b"\ntrain.py: ends after this step and keeps its work; once more: at once, without\n"


class Interrupted(Exception):
    """The run was told to end, and has written where it goes on.

    Attributes:
        signal_number: which signal told it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class Interruption:
    """A context manager; inside, the first signal is only noted, and a second one acts as ever.

    Where it is not ``heeded``, and outside the main thread, signals are left alone.
    """

    def __init__(self, heeded: bool = True) -> None:
        self.heeded = heeded and threading.current_thread() is threading.main_thread()
        self.told: int | None = None
        self.before: dict[int, signal.Handlers] = {}

    def __enter__(self) -> Interruption:
        if self.heeded:
            for number in SIGNALS:
                self.before[number] = signal.signal(number, self._note)  # type: ignore[assignment]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def check(self) -> None:
        """Raises Interrupted where a signal has come."""
        if self.told is not None:
            raise Interrupted(self.told)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.told = number
        self._restore()
        # print() is not allowed here: it may be what was interrupted.
        os.write(2, TOLD)

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
