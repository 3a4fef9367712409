"""Decoder processes, from the server's side: what strangers send is decoded in them alone.

A pool starts one zygote and forks its decoders from that (:mod:`serving.imaging.decoder_process`).
An image's file goes to a decoder in memory that both see, behind room for the pixels; what comes
back is a view of the same memory, so that no pixel is copied. The decoder zeroes it first, and
shares it with no other decoder. A decoder that dies, takes too long, or whose caller has gone is
killed and replaced; only its own image is lost.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from serving.errors import (
    DeadlineExceeded,
    InvalidImage,
    InvalidSetting,
    NotReady,
    SegserveError,
    TooLarge,
)
from serving.imaging import decoder_process as child
from serving.imaging import shared_memory
from serving.imaging.decode import needs_memory, read_still
from serving.imaging.still import StillImage, most_memory_bytes
from serving.imaging.zygote import START_TIMEOUT_S, Decoder, Zygote, find_reason, wait_readable
from serving.settings import Settings

log = logging.getLogger("segserve")

# Memory for pixels that is used again, of all decoders together and of each at least.
_KEPT_BYTES = 64 << 20
_MIN_KEPT_BYTES = 16 << 20
# Every format is tried before the server is ready.
_TRIALS = (".jpg", ".png", ".webp", ".bmp")


class _Lost(Exception):
    """A decoder gave no answer: it ended, or ``is_late``."""

    def __init__(self, *, is_late: bool) -> None:
        super().__init__()
        self.is_late = is_late


class Decoding:
    """One decoding that others may end from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.reason = ""

    def abort(self, reason: str) -> None:
        """Ends it now, or before it begins; after its end this does nothing."""
        with self._lock:
            self.reason = self.reason or reason
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def attach(self, decoder: socket.socket) -> None:
        """Names the decoder's socket.

        Raises:
            NotReady: it was ended before.
        """
        with self._lock:
            if self.reason:
                raise NotReady("the image was not decoded: the request was ended")
            self._socket = decoder

    def detach(self) -> str:
        """Forgets the decoder; returns why the decoding was ended, or nothing."""
        with self._lock:
            self._socket = None
            return self.reason


class DecoderPool:
    """``settings.decoder_processes`` decoders. Any thread may call anything.

    Args:
        on_restart: called with one of ``RESTART_REASONS`` for each decoder that is replaced.
    """

    def __init__(self, settings: Settings, on_restart: Callable[[str], None]) -> None:
        self.size = settings.decoder_processes
        self._settings = settings
        self._on_restart = on_restart
        self._memory_bytes = most_memory_bytes(
            settings.max_image_megapixels, settings.max_request_bytes
        )
        self._kept_bytes = max(_MIN_KEPT_BYTES, _KEPT_BYTES // max(1, self.size))
        # Those that the decoder maps although they are replaced here take no memory, but room.
        self._memory_bytes += shared_memory.SLOTS * self._kept_bytes
        self._changed = threading.Condition()
        self._idle: deque[Decoder] = deque()
        self._alive = 0
        self._running: set[Decoding] = set()
        self._starting = threading.Lock()
        self._zygote: Zygote | None = None
        self._closed = False
        self._warned = False

    def start(self) -> None:
        """Starts the zygote, and does not wait for it."""
        with self._starting:
            self._zygote = Zygote(self._settings.decoder_sandbox != "off")

    def wait_ready(self) -> None:
        """Waits until all decoders are there, and one has decoded an image of each format.

        Raises:
            InvalidSetting: none can be started, or not as ``decoder_sandbox`` wants it; or what is
                needed besides, such as memory files, cannot be had.
        """
        try:
            while True:
                with self._changed:
                    if self._alive >= self.size:
                        break
                    self._alive += 1
                try:
                    self._release(self._spawn())
                except OSError:
                    with self._changed:
                        self._alive -= 1
                    raise
            for extension in _TRIALS:
                pixels = np.zeros((8, 8, 3), np.uint8)
                still = read_still(cv2.imencode(extension, pixels)[1].tobytes())
                self.decode(still, Decoding())
        except (OSError, SegserveError) as error:
            raise InvalidSetting(
                f"no image can be decoded: {error}; decoder_processes = 0 decodes in the server's"
                " own process, for callers that are trusted"
            ) from None

    def decode(
        self, still: StillImage, decoding: Decoding, deadline: float | None = None
    ) -> npt.NDArray[np.uint8]:
        """Decodes an image that was checked (``check_still``); blocks until it is done.

        Args:
            decoding: what ends it from outside.
            deadline: on ``time.monotonic``.

        Returns:
            RGB, uint8 ``[H,W,3]``, upright; its memory goes with it.

        Raises:
            InvalidImage: the file is broken, crashes its decoder, or takes too long.
            TooLarge: it takes more memory than its size accounts for.
            DeadlineExceeded: ``deadline`` passed.
            NotReady: the server stops, or no decoder can be started.
        """
        if deadline is not None and time.monotonic() >= deadline:
            raise DeadlineExceeded("the deadline passed before the image was decoded")
        pixels = self._try(still, decoding, deadline, may_repeat=True)
        if pixels is None:
            pixels = self._try(still, decoding, deadline, may_repeat=False)
        assert pixels is not None
        return pixels

    def _try(
        self, still: StillImage, decoding: Decoding, deadline: float | None, *, may_repeat: bool
    ) -> npt.NDArray[np.uint8] | None:
        """Decodes once; None where the decoder was killed from outside, with ``may_repeat``.

        Raises:
            SegserveError: as :meth:`decode`.
        """
        timeout_s = self._settings.decode_timeout_s
        decoder = self._take(deadline)
        ends = time.monotonic() + timeout_s
        is_deadline = deadline is not None and deadline < ends
        if deadline is not None:
            ends = min(ends, deadline)
        with self._changed:
            self._running.add(decoding)
        try:
            decoding.attach(decoder.socket)
            buffer = self._fill(decoder, still)
            answer = self._ask(decoder, still, timeout_s, buffer, ends)
        except NotReady:
            # First, as it is somebody else's decoder then.
            decoding.detach()
            self._release(decoder)
            raise
        except _Lost as lost:
            late = ("deadline" if is_deadline else "timeout") if lost.is_late else ""
            self._bury(decoder, still, decoding.detach() or late, may_repeat)
            return None
        except BaseException:
            # Whatever it was: nobody knows what the decoder does now, and its place is needed.
            decoding.detach()
            self._discard(decoder, "")
            raise
        finally:
            aborted = decoding.detach()
            with self._changed:
                self._running.discard(decoding)
        pixels = self._read(answer, decoder, buffer, still)
        if aborted:
            # Its socket was shut down just behind the answer.
            self._discard(decoder, aborted)
        else:
            self._release(decoder)
        if isinstance(pixels, SegserveError):
            raise pixels
        return pixels

    def abort_all(self) -> None:
        """Ends what is being decoded now: the server stops."""
        with self._changed:
            running = list(self._running)
        for decoding in running:
            decoding.abort("stop")

    def close(self) -> None:
        """Ends all processes; what is being decoded is lost."""
        with self._changed:
            self._closed = True
            idle = list(self._idle)
            self._idle.clear()
            self._changed.notify_all()
        self.abort_all()
        for decoder in idle:
            decoder.socket.close()
        with self._starting:
            if self._zygote is not None:
                self._zygote.close()
                self._zygote = None

    def processes(self) -> list[int]:
        """Returns the decoders that are idle now."""
        with self._changed:
            return [decoder.process for decoder in self._idle]

    @property
    def zygote(self) -> int:
        """Returns the process that decoders are forked from; 0 where there is none."""
        with self._starting:
            return self._zygote.process.pid if self._zygote is not None else 0

    @staticmethod
    def _fill(decoder: Decoder, still: StillImage) -> shared_memory.Buffer:
        """Returns a buffer of the decoder with the image's file in it, behind the room for its
        pixels."""
        try:
            buffer = decoder.buffers.take(3 * still.pixels + still.stream_bytes)
        except (OSError, MemoryError) as error:
            raise NotReady(f"there is no memory for the image ({error}); try again later") from None
        buffer.write(still.parts, 3 * still.pixels)
        return buffer

    @staticmethod
    def _ask(
        decoder: Decoder,
        still: StillImage,
        timeout_s: float,
        buffer: shared_memory.Buffer,
        ends: float,
    ) -> bytes:
        """Returns the decoder's answer.

        Raises:
            _Lost: there is none by ``ends``, on ``time.monotonic``.
        """
        request = child.pack_request(still, timeout_s, buffer)
        try:
            passed = [] if buffer.is_known else [buffer.descriptor]
            socket.send_fds(decoder.socket, [request], passed)
            if not wait_readable(decoder.socket, ends - time.monotonic()):
                raise _Lost(is_late=True)
            answer = decoder.socket.recv(1 + child.MAX_TEXT)
        except OSError:
            answer = b""
        if not answer:
            raise _Lost(is_late=False)
        # Perhaps it was the mapping that took too much.
        buffer.is_known = answer[0] != child.NO_MEMORY
        buffer.dirty = 3 * still.pixels + still.stream_bytes
        if buffer.slot == shared_memory.ONE_USE:
            buffer.close_descriptor()
        return answer

    @staticmethod
    def _read(
        answer: bytes, decoder: Decoder, buffer: shared_memory.Buffer, still: StillImage
    ) -> npt.NDArray[np.uint8] | SegserveError:
        """Returns what an answer means: pixels, whose buffer is the decoder's again after them."""
        if answer[0] != child.DONE:
            decoder.buffers.give_back(buffer)
            if answer[0] == child.NO_MEMORY:
                return needs_memory(still)
            text = answer[1:].decode("utf-8", "replace")
            return InvalidImage(f"the {still.format} image {text}")
        height, width = still.height, still.width
        if still.orientation >= 5:
            height, width = width, height
        pixels = buffer.lend(3 * still.pixels, decoder.buffers.give_back)
        return pixels.reshape(height, width, 3)

    def _take(self, deadline: float | None) -> Decoder:
        """Returns an idle decoder, or a new one where one is missing."""
        ends = time.monotonic() + START_TIMEOUT_S if deadline is None else deadline
        while True:
            with self._changed:
                while not self._idle and self._alive >= self.size and not self._closed:
                    if not self._changed.wait(max(0.0, ends - time.monotonic())):
                        raise DeadlineExceeded("the deadline passed before the image was decoded")
                if self._closed:
                    raise NotReady("the image was not decoded: the server stops")
                # The last one: its memory is in the caches.
                decoder = self._idle.pop() if self._idle else None
                if decoder is None:
                    self._alive += 1
            if decoder is None:
                return self._replace()
            if decoder.is_usable():
                return decoder
            self._discard(decoder, "")

    def _replace(self) -> Decoder:
        """Returns a new decoder, which counts as alive already."""
        try:
            return self._spawn()
        except OSError as error:
            with self._changed:
                self._alive -= 1
                self._changed.notify()
            log.error("%s", error)
            raise NotReady(
                f"there is no decoder for the image ({error}); try again later"
            ) from None

    def _release(self, decoder: Decoder) -> None:
        with self._changed:
            if not self._closed:
                self._idle.append(decoder)
                self._changed.notify()
                return
        decoder.socket.close()

    def _bury(self, decoder: Decoder, still: StillImage, ended: str, may_repeat: bool) -> None:
        """Replaces a decoder that gave no answer. Returns where the image may be tried again.

        Args:
            ended: why it is ended here; empty where it ended by itself.

        Raises:
            SegserveError: what the image is answered with.
        """
        reason = self._discard(decoder, ended)
        if self._closed or ended == "stop":
            raise NotReady("the image was not decoded: the server stops")
        if ended == "cancelled":
            raise NotReady("the image was not decoded: the request was ended")
        if ended == "deadline":
            raise DeadlineExceeded("the deadline passed while the image was being decoded")
        if reason == "killed" and may_repeat:
            # Memory that ran out, its zygote, an operator: mostly no fault of the image.
            return
        if reason in ("timeout", "cpu"):
            raise InvalidImage(
                f"the {still.format} image takes longer to decode than decode_timeout_s ="
                f" {self._settings.decode_timeout_s:g}; send a smaller one, or encode it anew"
            )
        if reason == "memory":
            raise needs_memory(still)
        if reason == "killed":
            raise TooLarge(
                f"decoding the {still.format} image was given up: its decoder was killed twice, as"
                " happens where the machine's memory runs out; send a smaller one, or try again"
                " later",
                reason="image_memory",
            )
        raise InvalidImage(
            f"the {still.format} image is broken: its decoder crashed on it and was replaced"
        )

    def _discard(self, decoder: Decoder, ended: str) -> str:
        """Ends a decoder and puts a new one in its place; returns why.

        Args:
            ended: why it is ended here; empty where it ended by itself.
        """
        status = decoder.zygote.end(decoder.process)
        decoder.socket.close()
        reason = ended or find_reason(status)
        if self._closed or reason == "stop":
            return reason
        self._on_restart(reason)
        log.warning("a decoder process was replaced: %s", reason)
        try:
            self._release(self._spawn())
        except OSError as error:
            # The next image tries again.
            if not self._closed:
                log.error("%s", error)
            with self._changed:
                self._alive -= 1
                self._changed.notify()
        return reason

    def _spawn(self) -> Decoder:
        """Returns a new decoder; of a new zygote, where the old one has ended.

        Raises:
            OSError: none can be started.
        """
        try:
            zygote = self._living_zygote()
            decoder, hello = zygote.spawn(self._memory_bytes, self._kept_bytes)
        except OSError:
            # Its zygote, or the new decoder itself, was killed just now.
            zygote = self._living_zygote()
            decoder, hello = zygote.spawn(self._memory_bytes, self._kept_bytes)
        if hello[0] == child.LIMITED and self._settings.decoder_sandbox != "off":
            text = hello[1:].decode("utf-8", "replace")
            if self._settings.decoder_sandbox == "required":
                zygote.end(decoder.process)
                decoder.socket.close()
                raise OSError(f"decoder_sandbox = required cannot be had: {text}")
            if not self._warned:
                log.warning("decoders run with limits but without a system call filter: %s", text)
            self._warned = True
        return decoder

    def _living_zygote(self) -> Zygote:
        with self._starting:
            if self._closed:
                raise OSError("the server stops")
            if self._zygote is None or not self._zygote.is_alive:
                if self._zygote is not None:
                    # It may be stopped, and who waits for an image waits for this.
                    self._zygote.process.kill()
                    self._zygote.close()
                self._zygote = Zygote(self._settings.decoder_sandbox != "off")
            return self._zygote
