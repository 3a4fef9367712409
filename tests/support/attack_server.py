"""A server in a process of its own, watched from outside while it is attacked."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.band_model import band_labels, bands, encode, write_model
from tests.support.waiting import stretched

ROOT = Path(__file__).parents[2]
MODEL = "bands"
SEGMENT = f"/v2/models/{MODEL}/segment?format=raw"
# A server has more threads to wait for than the control, on cores that others keep busy.
CONTROL_FACTOR = 5.0
PHOTO = encode(bands(32, 48))

# The client's memory and the client's GIL are not the server's, nor the prober's.
_SERVER = """
import asyncio, sys
from pathlib import Path
from tests.support.band_model import MODEL_SIZE, free_ports, serve_fake
from serving.server import Server, run
from serving.testing import FakeEngine

async def main():
    server = Server(free_ports(Path(sys.argv[1])), serve_fake(FakeEngine(MODEL_SIZE)))
    ready = asyncio.Event()
    task = asyncio.create_task(run(server, ready))
    await ready.wait()
    print(server.ports.http, server.ports.grpc, server.ports.metrics, flush=True)
    await task

asyncio.run(main())
"""

# Answers at once and does nothing else: what it takes is the machine's doing.
_CONTROL = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection = listener.accept()[0]
while connection.recv(4096):
    connection.sendall(b"HTTP/1.1 200 OK")
"""

_PROBER = """
import select, socket, subprocess, sys, time
head = b"GET /v2/health/live HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n"
command = [sys.executable, "-c", sys.argv[2]]
control = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
ports = [int(sys.argv[1]), int(control.stdout.readline())]
connections = [socket.create_connection(("127.0.0.1", port), 60) for port in ports]
worst, answers = [0.0, 0.0], 0
print("probing", flush=True)
while not answers or not select.select([sys.stdin], [], [], 0.01)[0]:
    for number, connection in enumerate(connections):
        start = time.perf_counter()
        connection.sendall(head)
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        worst[number] = max(worst[number], time.perf_counter() - start)
    answers += 1
print(*worst, flush=True)
connections[1].close()
control.wait()
"""


@dataclass
class Waits:
    """The longest waits for an answer: of the server, and of a process that does nothing else."""

    server_s: float = 0.0
    control_s: float = 0.0

    def within(self, limit_s: float) -> bool:
        """Whether others were answered in time, as far as the machine answers anybody in time."""
        return self.server_s < max(limit_s, CONTROL_FACTOR * self.control_s)


@dataclass
class AttackedServer:
    """The process and its ports on 127.0.0.1."""

    process: subprocess.Popen[str]
    http: int
    grpc: int
    metrics: int

    @property
    def resident_bytes(self) -> int:
        """The memory that the server's own process holds."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        assert found, text
        return int(found[1]) * 1024

    def check_answers(self) -> None:
        """Asserts that a good photo is answered rightly, with the right labels."""
        address = f"http://127.0.0.1:{self.http}{SEGMENT}"
        answer = httpx.post(address, content=PHOTO, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.content == band_labels(32, 48).tobytes()

    @contextlib.contextmanager
    def probe(self) -> Iterator[Waits]:
        """Asks for health every 10 ms meanwhile; gives what is filled in at the end."""
        found = Waits()
        with subprocess.Popen(
            [sys.executable, "-c", _PROBER, str(self.http), _CONTROL],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as prober:  # fmt: skip
            assert prober.stdin is not None
            assert prober.stdout is not None
            assert prober.stdout.readline() == "probing\n"
            try:
                yield found
            finally:
                prober.stdin.close()
                found.server_s, found.control_s = map(float, prober.stdout.readline().split())

    def wait_for_memory(self, limit: float, seconds: float = 20.0) -> float:
        """Returns the resident bytes once they are below ``limit``, or what they are at the end."""
        start = time.monotonic()
        while (found := self.resident_bytes) > limit:
            waited = time.monotonic() - start
            if waited > seconds and waited > stretched(seconds):
                break
            time.sleep(0.2)
        return found


@contextlib.contextmanager
def attacked_server(folder: Path) -> Iterator[AttackedServer]:
    """A server of the band model with default limits; it must still be alive at the end."""
    write_model(folder)
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(folder)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={name: text for name, text in os.environ.items() if not name.startswith("SEGSERVE_")},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            ports = [int(word) for word in process.stdout.readline().split()]
            server = AttackedServer(process, *ports)
            for _ in range(20):
                server.check_answers()
            yield server
            assert process.poll() is None, f"the server ended with {process.returncode}"
        finally:
            process.terminate()
            process.wait(60)
