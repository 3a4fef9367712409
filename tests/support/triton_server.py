"""A real Triton, started by ``deploy/triton/start.py``, for tests."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

from benchmarks.contest.processes import free_ports
from serving.settings import cache_folder
from tests.support.own_environment import unavailable

START = Path(__file__).parents[2] / "deploy" / "triton" / "start.py"
READY_SECONDS = 300.0


@dataclass(frozen=True)
class Triton:
    """A running server. ``log`` is the file of its standard error."""

    process: subprocess.Popen[bytes]
    client: InferenceServerClient
    log: Path
    http: str
    grpc: str

    def infer(
        self, model: str, tensor: npt.NDArray[np.generic], *outputs: str
    ) -> dict[str, npt.NDArray[np.generic]]:
        """The named outputs (all where none is named) for one input tensor."""
        wanted = [InferRequestedOutput(name) for name in outputs] or None
        item = model_input(self.client, model, tensor)
        result = self.client.infer(model, [item], outputs=wanted)
        return {t.name: result.as_numpy(t.name) for t in result.get_response().outputs}


def model_input(
    client: InferenceServerClient, model: str, tensor: npt.NDArray[np.generic]
) -> InferInput:
    """The tensor as the model's only input."""
    (declared,) = client.get_model_metadata(model).inputs
    item = InferInput(declared.name, list(tensor.shape), declared.datatype)
    item.set_data_from_numpy(tensor)
    return item


def install_triton() -> None:
    """Installs the server and MXNet into the cache folder, once."""
    command: list[str | Path] = [
        sys.executable,
        START,
        "--mxnet",
        "--setup-only",
        "--cache",
        _cache(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        unavailable(f"Triton cannot be installed: {done.stderr.strip()[-300:]}")


@contextmanager
def run_triton(
    repository: Path, log: Path, *arguments: str, grpc_port: int | None = None
) -> Iterator[Triton]:
    """Serves a repository on free ports; models that do not load do not stop it.

    ``arguments`` are further ones of tritonserver; ``grpc_port`` where it must be a certain one.

    At the end SIGTERM must stop it with status 0, and no shared memory may be left.
    """
    http, free, metrics = free_ports(3)
    grpc = grpc_port or free
    command: list[str | Path] = [
        sys.executable, START, "--mxnet", "--cache", _cache(), "--repository", repository,
        "--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics),
        "--", "--exit-on-error=false", "--exit-timeout-secs=60", *arguments,
    ]  # fmt: skip
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        with InferenceServerClient(f"127.0.0.1:{grpc}") as client:
            _wait(process, client, log)
            yield Triton(process, client, log, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, log.read_text("utf-8", "replace")[-2000:]
        assert not list(_regions(process.pid))
    finally:
        process.kill()
        process.wait()
        for region in _regions(process.pid):
            region.unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], client: InferenceServerClient, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.is_server_live():
                return
        except Exception:  # not listening yet
            pass
        time.sleep(0.2)
    tail = log.read_text("utf-8", "replace")[-3000:]
    raise AssertionError(f"tritonserver did not start:\n{tail}")


def _regions(pid: int) -> Iterator[Path]:
    """What a server of that process id has in shared memory; start.py names it so."""
    return Path("/dev/shm").glob(f"segserve_triton_{pid}_*")


def _cache() -> Path:
    return cache_folder() / "triton"
