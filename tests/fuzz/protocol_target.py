"""Sends mutants to a server in another process, and judges its answers and its health."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import grpc
from grpc_mutants import GrpcMutant
from mutant_values import IMAGE
from protocol_mutants import HttpMutant, http

from tests.support.band_model import MODEL_SIZE, band_labels

ROOT = Path(__file__).parents[2]
# Done, the caller's mistake, not in this server, or too late by the caller's own deadline.
STATUSES = {*range(200, 300), *range(400, 500), 501, 504, 505}
CODES = {
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED,
}  # fmt: skip
ANSWER_S = 30.0
LOOP_S, GROWN_BYTES = 0.5, 512 << 20
_STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3})", re.MULTILINE)
_QUIET_S = 0.1


class ServerGone(Exception):
    """The server's process has ended, or does not answer any more."""


class ProtocolTarget:
    """A server of its own; ``with ProtocolTarget() as target: target.verdict(mutant)``."""

    def __enter__(self) -> ProtocolTarget:
        self._folder = tempfile.TemporaryDirectory()
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "fuzz_server.py"), self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
        )
        ports = json.loads(self._line() or "{}")
        if not ports:
            raise ServerGone(self.log())
        self._http: int = ports["http"]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}")
        self._resident = 0
        self._read = 0
        self.exchange(http("/v2/models/bands/segment?format=raw", IMAGE))
        self.health()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
        self._folder.cleanup()

    def log(self) -> str:
        """What the server has written since the last call."""
        self._log.seek(getattr(self, "_read", 0))
        found = self._log.read()
        self._read = getattr(self, "_read", 0) + len(found)
        return found.decode("utf-8", "replace")

    def verdict(self, mutant: HttpMutant | GrpcMutant) -> str:
        """What is wrong with the answer; empty where nothing is."""
        began = time.monotonic()
        try:
            wrong = (
                self._http_verdict(mutant)
                if isinstance(mutant, HttpMutant)
                else self._grpc_verdict(mutant)
            )
        except ConnectionRefusedError:
            raise ServerGone(self.log()) from None
        if not wrong and time.monotonic() - began > ANSWER_S:
            return "slow: answered too late"
        return wrong

    def health(self) -> str:
        """What is wrong with the server; empty while it answers a good request as it should."""
        try:
            found = self.exchange(http("/v2/models/bands/segment?format=raw", IMAGE))
        except OSError as error:
            raise ServerGone(f"{error}\n{self.log()}") from None
        labels = band_labels(MODEL_SIZE.height, MODEL_SIZE.width).tobytes()
        if _STATUS.findall(found)[:1] != [b"200"] or not found.endswith(labels):
            return f"unhealthy: a good request got {found[:300]!r}"
        line = self._ask()
        if line["loop_s"] > LOOP_S:
            return f"loop: the event loop computed for {line['loop_s']:.2f} s"
        grown = line["resident_bytes"] - self._resident if self._resident else 0
        self._resident = self._resident or int(line["resident_bytes"])
        if grown > GROWN_BYTES:
            return f"memory: {grown >> 20} MiB more than at first"
        log = self.log()
        if "Traceback" in log:
            return f"log: {log[-2000:]}"
        return ""

    def _ask(self) -> dict[str, float]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ServerGone(self.log()) from None
        line = self._line()
        if not line:
            raise ServerGone(self.log())
        found: dict[str, float] = json.loads(line)
        return found

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def exchange(self, data: bytes, *, framed: bool = True) -> bytes:
        """Everything that the server sends until it closes.

        A request that is not framed may wait for more: after a moment this side ends it.
        """
        with socket.create_connection(("127.0.0.1", self._http), timeout=ANSWER_S) as connection:
            found = b""
            try:
                connection.sendall(data)
                if not framed:
                    connection.settimeout(_QUIET_S)
                    try:
                        while part := connection.recv(1 << 16):
                            found += part
                        return found
                    except TimeoutError:
                        connection.shutdown(socket.SHUT_WR)
                        connection.settimeout(ANSWER_S)
                while part := connection.recv(1 << 16):
                    found += part
            except (ConnectionResetError, BrokenPipeError):
                # Refused before all of it was read: legal, and the answer may be lost by it.
                return found or b"reset"
            return found

    def _http_verdict(self, mutant: HttpMutant) -> str:
        try:
            found = self.exchange(mutant.data, framed=mutant.framed)
        except TimeoutError:
            return "hang: no answer"
        statuses = [int(status) for status in _STATUS.findall(found)]
        if mutant.framed and not statuses:
            return f"closed: without an answer {found[:100]!r}"
        wrong = [status for status in statuses if status not in STATUSES]
        if wrong:
            return f"status: {wrong[0]} {found[:600]!r}"
        if mutant.framed and statuses[-1] >= 400 and not _is_error(found):
            return f"body: an error without its two fields {found[:600]!r}"
        return ""

    def _grpc_verdict(self, mutant: GrpcMutant) -> str:
        try:
            self._call(mutant)
        except grpc.RpcError as error:
            if error.code() not in CODES:
                return f"code: {error.code().name} {error.details()[:500]!r}"
            if not error.details():
                return f"details: {error.code().name} without a text"
        return ""

    def _call(self, mutant: GrpcMutant) -> None:
        messages: Sequence[bytes] = mutant.messages
        if not mutant.streams_in and not mutant.streams_out:
            self._channel.unary_unary(mutant.method)(messages[0], timeout=ANSWER_S)
        elif mutant.streams_in:
            list(self._channel.stream_stream(mutant.method)(iter(messages), timeout=ANSWER_S))
        else:
            # Health/Watch goes on until the client leaves.
            watched = self._channel.unary_stream(mutant.method)(messages[0], timeout=ANSWER_S)
            next(watched, None)
            watched.cancel()


def _is_error(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"application/json" not in head.lower():
        return False
    try:
        found = json.loads(body)
    except ValueError:
        return False
    return isinstance(found, dict) and {"error", "code"} <= set(found)
