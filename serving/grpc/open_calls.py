"""The gRPC calls that are open: how many there may be, how long each may wait, who gives way.

A call costs its caller a few bytes, and the server a task, whether or not its message ever comes.
So every call is counted, also those that need no key, in a lane of its own kind: probes of health
must get through when all other calls are taken, and watchers, which stay for ever, must not keep
probes out. In a full lane a call that has sent nothing yet gives way to a new one: the oldest of
the address that has most of these. An ordinary call sends its message along with its headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from serving.errors import ClientGone, SegserveError, TooManyRequests, UploadTimeout
from serving.settings import Settings

SWEEP_SECONDS: Final = 1.0
# A stream that has been quiet for so long may give way to a call that has something to do.
QUIET_SECONDS: Final = 10.0


@dataclass(eq=False)
class OpenCall:
    """One call from its headers to its status.

    Attributes:
        is_stream: of several requests, each with one answer.
        last: when its last message came or went, on the event loop's clock.
        model: that it asks for, once that is known.
        received, answered: messages; a stream is quiet while they are equal.
        sending: a message is on its way that the client does not take.
        check_key: raises where the caller's key is not valid any more.
        error: why the server ends it; None while it may continue.
    """

    lane: Lane
    address: str
    task: asyncio.Task[object]
    is_stream: bool
    last: float
    model: str = ""
    received: int = 0
    answered: int = 0
    sending: bool = False
    check_key: Callable[[], None] | None = None
    error: SegserveError | None = None

    @property
    def is_quiet(self) -> bool:
        return self.is_stream and not self.sending and self.received == self.answered

    def note_message(self) -> None:
        """Notes that a message of the client has come."""
        if not self.received:
            self.lane.note_message(self)
        self.received += 1
        self.last = self.task.get_loop().time()

    def note_sending(self, *, done: bool) -> None:
        """Notes that an answer is on its way, or was taken."""
        self.sending = not done
        self.answered += done
        self.last = self.task.get_loop().time()

    def end(self, error: SegserveError) -> None:
        """Ends the call with an error, wherever it waits: its task is cancelled, and whoever runs
        it finds the error here."""
        if self.error is None:
            self.error = error
            self.task.cancel()


@dataclass
class Lane:
    """The open calls of one kind.

    Attributes:
        setting: names ``limit``.
        share: of one address; None sets no limit per address.
        silent: by address, those whose first message has not come, oldest first.
        quiet: streams that may give way, longest quiet first, as of the last sweep.
    """

    setting: str
    limit: int
    share: int | None = None
    calls: dict[OpenCall, None] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    silent: dict[str, dict[OpenCall, None]] = field(default_factory=dict)
    quiet: list[OpenCall] = field(default_factory=list)

    def add(self, call: OpenCall) -> None:
        self.calls[call] = None
        self.addresses[call.address] = self.addresses.get(call.address, 0) + 1
        self.silent.setdefault(call.address, {})[call] = None

    def remove(self, call: OpenCall) -> None:
        """Removes a call; a second time does nothing."""
        if call not in self.calls:
            return
        del self.calls[call]
        self.addresses[call.address] -= 1
        if not self.addresses[call.address]:
            del self.addresses[call.address]
        self.note_message(call)

    def note_message(self, call: OpenCall) -> None:
        """Notes that a call is not silent any more."""
        silent = self.silent.get(call.address, {})
        silent.pop(call, None)
        if not silent:
            self.silent.pop(call.address, None)

    def find_idle(self, now: float) -> OpenCall | None:
        """Returns the call that gives way to a new one, if there is any."""
        if self.silent:
            most = max(self.silent.values(), key=lambda calls: len(calls))
            return next(iter(most))
        while self.quiet:
            call = self.quiet.pop()
            if call in self.calls and call.is_quiet and now - call.last >= QUIET_SECONDS:
                return call
        return None

    def find_quiet(self, now: float) -> None:
        """Lists the streams that may give way: first those of the address that has most."""
        quiet = [c for c in self.calls if c.is_quiet and now - c.last >= QUIET_SECONDS]
        held: dict[str, int] = {}
        for call in quiet:
            held[call.address] = held.get(call.address, 0) + 1
        # They are taken from the end.
        self.quiet = sorted(quiet, key=lambda call: (held[call.address], -call.last))


class OpenCalls:
    """Counts the calls of one server and ends those that wait too long.

    All of it runs on the server's event loop.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.calls = Lane("max_grpc_calls", settings.max_grpc_calls)
        self.probes = Lane("max_grpc_calls", settings.max_grpc_calls)
        self.watches = Lane(
            "max_grpc_watches", settings.max_grpc_watches, settings.max_grpc_watches_per_address
        )
        self._timer: asyncio.TimerHandle | None = None
        waits = (settings.upload_timeout_s, settings.send_timeout_s, settings.stream_idle_timeout_s)
        self._period = min(SWEEP_SECONDS, *(wait / 4 for wait in waits))

    @property
    def limit(self) -> int:
        """Returns how many calls may be open together."""
        return self.calls.limit + self.probes.limit + self.watches.limit

    def enter(self, lane: Lane, address: str, *, is_stream: bool) -> OpenCall:
        """Opens a call of the running task; :meth:`leave` closes it.

        Raises:
            TooManyRequests: the lane is full and nobody gives way; the text names the setting.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # gRPC runs every handler in one
        now = loop.time()
        if lane.share is not None and lane.addresses.get(address, 0) >= lane.share:
            raise TooManyRequests(
                f"{lane.share} calls of this kind are open from {address} already "
                f"(setting {lane.setting}_per_address); close some",
                reason="grpc_calls",
            )
        if len(lane.calls) >= lane.limit:
            idle = lane.find_idle(now)
            if idle is None:
                raise TooManyRequests(
                    f"{lane.limit} calls are open already (setting {lane.setting}); "
                    f"try again later",
                    reason="grpc_calls",
                )
            lane.remove(idle)
            idle.end(
                TooManyRequests(
                    f"{lane.limit} calls were open (setting {lane.setting}), and this one had "
                    f"sent nothing: it gave way to another; try again later",
                    reason="grpc_calls",
                )
            )
        call = OpenCall(lane, address, task, is_stream, now)
        lane.add(call)
        if self._timer is None:
            self._timer = loop.call_later(self._period, self._sweep)
        return call

    def leave(self, call: OpenCall) -> None:
        """Closes a call."""
        call.lane.remove(call)

    def _sweep(self) -> None:
        """Ends what has waited too long, or whose key is gone; runs while any call is open."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        lanes = (self.calls, self.probes, self.watches)
        for lane in lanes:
            for call in list(lane.calls):
                error = self._find_error(call, now)
                if error is not None:
                    call.end(error)
            lane.find_quiet(now)
        is_open = any(lane.calls for lane in lanes)
        self._timer = loop.call_later(self._period, self._sweep) if is_open else None

    def _find_error(self, call: OpenCall, now: float) -> SegserveError | None:
        settings, waited = self.settings, now - call.last
        if call.sending:
            if waited > settings.send_timeout_s:
                return ClientGone(
                    f"the client took no answer for {settings.send_timeout_s:g} s "
                    f"(setting send_timeout_s)",
                    reason="send_timeout",
                )
        elif not call.received:
            if waited > settings.upload_timeout_s:
                return UploadTimeout(
                    f"the message did not arrive within {settings.upload_timeout_s:g} s "
                    f"(setting upload_timeout_s)",
                    reason="upload_timeout",
                )
        elif call.is_quiet and waited > settings.stream_idle_timeout_s:
            return UploadTimeout(
                f"the stream was quiet for {settings.stream_idle_timeout_s:g} s "
                f"(setting stream_idle_timeout_s); open it again",
                reason="stream_idle",
            )
        if call.check_key is not None:
            try:
                call.check_key()
            except SegserveError as error:
                return error
        return None
