"""A server's memory after many requests of varying sizes, read from the kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.band_model import bands, encode, write_model
from tests.support.waiting import wait_for

# In a process of its own: the client's memory is not the server's.
SERVER = """
import asyncio, sys
from tests.support.band_model import MODEL_SIZE, free_ports, serve_fake
from pathlib import Path
from serving.server import Server, run
from serving.testing import FakeEngine

async def main():
    server = Server(free_ports(Path(sys.argv[1])), serve_fake(FakeEngine(MODEL_SIZE)))
    ready = asyncio.Event()
    task = asyncio.create_task(run(server, ready))
    await ready.wait()
    print(server.ports.http, flush=True)
    await task

asyncio.run(main())
"""
SEGMENT = "/v2/models/bands/segment"


def resident_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found
    return int(found[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read memory from")
@pytest.mark.parametrize("number", [pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_stays_flat(tmp_path: Path, number: int) -> None:
    write_model(tmp_path)
    chance = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in chance.integers(8, 400, (50, 2))]
    files = [encode(bands(*size), form) for size in sizes for form in ("PNG", "JPEG")]
    forms = ("raw", "png", "stats", "rle", "polygons", "overlay", "npy")
    # One arena: what is measured is what is kept, not how glibc spreads it over threads.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], env=environment,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:

                def ask(index: int) -> None:
                    form = forms[index % len(forms)]
                    data = files[int(chance.integers(len(files)))]
                    if index % 10 == 9:
                        assert http.post(SEGMENT, content=data[:-40]).status_code in (200, 400)
                    answer = http.post(SEGMENT, params={"format": form}, content=data)
                    assert answer.status_code == 200

                for index in range(number // 10):
                    ask(index)
                warm = resident_bytes(process.pid)
                for index in range(number):
                    ask(index)
                # What is free at the end may take some seconds to go back.
                with suppress(AssertionError):
                    wait_for(lambda: resident_bytes(process.pid) < warm * 1.02)
                grown = resident_bytes(process.pid) / warm - 1.0
        finally:
            process.terminate()
            process.wait(60)
    assert grown < 0.02, f"{grown:.1%} of {warm / 1e6:.0f} MB"
