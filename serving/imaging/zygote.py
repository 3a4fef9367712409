"""The process that decoders are forked from, and one decoder, from the server's side.

The zygote is started afresh, so it never held the server's memory, and stays single-threaded, so it
may fork (:mod:`serving.imaging.decoder_process` is what runs in it and in its decoders).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from serving.imaging import decoder_process as child
from serving.imaging import shared_memory

# Why a decoder was replaced: the label of segserve_decoder_restarts_total.
RESTART_REASONS = ("crash", "cpu", "memory", "killed", "timeout", "deadline", "cancelled")
# A fork takes milliseconds, the zygote's imports some tenths of a second.
START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 5.0
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from serving.imaging.decoder_process import main; main(int(sys.argv[2]), sys.argv[3] == '1')"
)
# What the zygote's own start may need; nothing of SEGSERVE_*, no key and no proxy.
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "TZ")


@dataclass(eq=False)
class Decoder:
    """A decoder process, the socket to it, and the memory that it shares with the server."""

    zygote: Zygote
    process: int
    socket: socket.socket
    buffers: shared_memory.BufferSlots

    def is_usable(self) -> bool:
        """Returns whether the decoder can be used: from an idle one, only its end can be read."""
        return not wait_readable(self.socket, 0.0)


class Zygote:
    """The process that decoders are forked from; see ``decoder_process.main``."""

    def __init__(self, with_filter: bool) -> None:
        self._lock = threading.Lock()
        self._is_lost = False
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).resolve().parents[2])
        path = [root, *(entry for entry in sys.path if os.path.isabs(entry))]
        environment = {k: os.environ[k] for k in _KEPT_VARIABLES if k in os.environ}
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-I", "-c", _BOOT,
                    json.dumps(path), str(theirs.fileno()), "1" if with_filter else "0",
                ],
                env=environment | child.ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )  # fmt: skip

    @property
    def is_alive(self) -> bool:
        """Returns whether it can be asked. One that ends closes its socket before it is gone."""
        return not self._is_lost and self.process.poll() is None

    def spawn(self, max_memory_bytes: int, kept_bytes: int) -> tuple[Decoder, bytes]:
        """Returns a new decoder, and what it said first.

        Raises:
            OSError: the zygote has ended, or cannot fork.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                process = self._ask(child.SPAWN, 0, max_memory_bytes, theirs)
            if process < 0:
                raise OSError(f"a decoder process cannot be started: {os.strerror(-process)}")
            ours.settimeout(START_TIMEOUT_S)
            hello = ours.recv(1 + child.MAX_TEXT)
            ours.settimeout(None)
            if not hello or hello[0] == child.FAILED:
                text = hello[1:].decode("utf-8", "replace") or "it ended at once"
                self.end(process)
                raise OSError(f"a decoder process cannot be started: {text}")
        except BaseException:
            ours.close()
            raise
        return Decoder(self, process, ours, shared_memory.BufferSlots(kept_bytes)), hello

    def end(self, process: int) -> int | None:
        """Kills a decoder if it lives; returns how it ended, None where nobody can say."""
        try:
            status = self._ask(child.END, process, 0, None)
        except OSError:
            return None
        return None if status < 0 else status

    def _ask(
        self, command: int, process: int, max_memory_bytes: int, passed: socket.socket | None
    ) -> int:
        message = child.COMMAND.pack(command, process, max_memory_bytes)
        with self._lock:
            reply = b""
            if not self._is_lost:
                with contextlib.suppress(OSError):
                    self.control.settimeout(START_TIMEOUT_S)
                    socket.send_fds(self.control, [message], [passed.fileno()] if passed else [])
                    reply = self.control.recv(child.REPLY.size)
            if len(reply) != child.REPLY.size:
                # Also where it is only late: its answer would be taken for the next one's.
                self._is_lost = True
                raise OSError("the process that starts decoders has ended or does not answer")
        return int(child.REPLY.unpack(reply)[0])

    def close(self) -> None:
        """Ends the zygote, which ends every decoder before itself."""
        with contextlib.suppress(OSError):
            # Wakes whoever waits for its answer.
            self.control.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self.control.close()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def wait_readable(waited: socket.socket, seconds: float) -> bool:
    """Returns whether there is something to read, or an end. Unlike ``select`` it takes any
    descriptor."""
    poll = select.poll()
    poll.register(waited, select.POLLIN)
    return bool(poll.poll(math.ceil(max(0.0, seconds) * 1000)))


def find_reason(status: int | None) -> str:
    """Returns why a decoder ended by itself, by how it ended."""
    if status is None:
        return "killed"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return {signal.SIGXCPU: "cpu", signal.SIGKILL: "killed"}.get(
            signal.Signals(number), "crash"
        )
    return "memory" if os.WEXITSTATUS(status) == child.GROWN_EXIT else "crash"
