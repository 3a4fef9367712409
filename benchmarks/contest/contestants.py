"""Starts the servers that are compared, each with its client."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tritonclient.grpc import InferenceServerClient, InferenceServerException

from benchmarks.contest.cases import MODEL, Files
from benchmarks.contest.clients import BytesClient, Client, HttpClient, TritonClient
from benchmarks.contest.processes import (
    Unavailable,
    answers,
    find_environment,
    free_ports,
    run_process,
    run_segserve,
)

SERVICES = Path(__file__).parent / "services"
TRITON = Path(__file__).parents[2] / "deploy" / "triton" / "start.py"
PATIENCE_MS = "3600000"


@dataclass(frozen=True)
class Setting:
    """The settings that all contestants share.

    Attributes:
        threads: of one run of the network; every server has one instance.
        folder: for logs and what servers want written.
    """

    files: Files
    threads: int
    folder: Path


@dataclass(frozen=True)
class Served:
    """A server that is ready.

    Attributes:
        pids: its processes; what they started counts with them.
        port: of 127.0.0.1, that the client speaks to.
        connect: a client of a port, this one or one that relays to it.
    """

    pids: tuple[int, ...]
    port: int
    connect: Callable[[int], Client]


Start = Callable[[Setting], AbstractContextManager[Served]]


@dataclass(frozen=True)
class Contestant:
    """One server with one version of the network; ``title`` is its name in tables and plots."""

    name: str
    title: str
    start: Start


def serve_here(repository: Callable[[Files], Path]) -> Start:
    """Starts this server with its embedded engine, as a process of ``segserve serve``."""

    @contextmanager
    def start(setting: Setting) -> Iterator[Served]:
        arguments = ["--repository", str(repository(setting.files))]
        with _run_segserve(setting, arguments, {}) as (pid, port):
            yield Served((pid,), port, _segment)

    return start


@contextmanager
def serve_before_triton(setting: Setting) -> Iterator[Served]:
    """Starts this server in front of a Triton that serves the logits."""
    with _run_triton(setting, setting.files.fp32) as (triton, grpc):
        arguments = ["--engine", "triton", "--triton-url", f"127.0.0.1:{grpc}"]
        patient = {"SEGSERVE_TRITON_TIMEOUT_S": "3600"}
        with _run_segserve(setting, arguments, patient) as (pid, port):
            yield Served((pid, triton), port, _segment)


def serve_by_triton(repository: Callable[[Files], Path | None]) -> Start:
    """Starts Triton alone; its client decodes and encodes."""

    @contextmanager
    def start(setting: Setting) -> Iterator[Served]:
        folder = repository(setting.files)
        if folder is None:
            raise Unavailable("the shipped graph has these rewrites already")
        with _run_triton(setting, folder) as (pid, grpc):
            colors = setting.files.colors.read_bytes()
            yield Served(
                (pid,),
                grpc,
                lambda port: TritonClient(f"127.0.0.1:{port}", setting.files.size, colors),
            )

    return start


def serve_plainly(runtime: str) -> Start:
    """Starts FastAPI and uvicorn around ONNX Runtime or MXNet."""

    @contextmanager
    def start(setting: Setting) -> Iterator[Served]:
        graph = setting.files.graph
        if runtime == "mxnet":
            if setting.files.mxnet is None:
                raise Unavailable("the shipped model has no MXNet files")
            if find_spec("mxnet") is None:
                raise Unavailable("mxnet is not installed (extra 'training')")
            graph = setting.files.mxnet
        with _run_service(setting, Path(sys.executable), "plain.py", graph, runtime) as served:
            yield served

    return start


@contextmanager
def serve_by_litserve(setting: Setting) -> Iterator[Served]:
    """Starts LitServe with one worker."""
    python = find_environment("litserve") / "python"
    with _run_service(setting, python, "lit.py", setting.files.graph) as served:
        yield served


@contextmanager
def serve_by_mlserver(setting: Setting) -> Iterator[Served]:
    """Starts MLServer with a custom runtime in one parallel worker (its default); gRPC calls it."""
    binaries = find_environment("mlserver")
    http, grpc, metrics = free_ports(3)
    folder = setting.folder / "mlserver"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    server = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "debug": False,
        "grpc_max_message_length": 1 << 28,
    }
    model = {"name": MODEL, "implementation": "mlserver_runtime.MaskRuntime"}
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))
    variables = {**_job(setting, setting.files.graph, http), "PYTHONPATH": str(SERVICES)}
    command: list[str | Path] = [binaries / "mlserver", "start", folder]
    ready = answers(f"http://127.0.0.1:{http}/v2/models/{MODEL}/ready")
    with run_process(command, variables, ready, setting.folder / "mlserver.log") as pid:
        yield Served((pid,), grpc, lambda port: BytesClient(f"127.0.0.1:{port}"))


CONTESTANTS = (
    Contestant("segserve-int8", "segserve int8", serve_here(lambda files: files.int8)),
    Contestant("segserve-fp32", "segserve fp32", serve_here(lambda files: files.fp32)),
    Contestant(
        "triton", "Triton (Python-based backend) fp32", serve_by_triton(lambda files: files.mask)
    ),
    Contestant(
        "triton-rewritten",
        "Triton (Python-based backend) fp32, graph rewritten by segserve",
        serve_by_triton(lambda files: files.mask_rewritten),
    ),
    Contestant(
        "segserve-triton",
        "segserve before Triton (Python-based backend) fp32",
        serve_before_triton,
    ),
    Contestant("litserve", "LitServe fp32", serve_by_litserve),
    Contestant("mlserver", "MLServer fp32", serve_by_mlserver),
    Contestant("plain", "FastAPI + ONNX Runtime fp32", serve_plainly("onnxruntime")),
    Contestant("mxnet", "FastAPI + MXNet 1.9.1 fp32", serve_plainly("mxnet")),
)
BASELINE = "triton"
OWN = ("segserve-int8", "segserve-fp32")


@contextmanager
def _run_segserve(
    setting: Setting, arguments: list[str], variables: dict[str, str]
) -> Iterator[tuple[int, int]]:
    variables = {
        "SEGSERVE_THREADS": str(setting.threads),
        "SEGSERVE_QUEUE_TIMEOUT_MS": PATIENCE_MS,
        **variables,
    }
    with run_segserve(arguments, variables, setting.folder / "segserve.log") as running:
        yield running


def _segment(port: int) -> Client:
    return HttpClient(f"http://127.0.0.1:{port}/v2/models/{MODEL}/segment", form=False)


@contextmanager
def _run_triton(setting: Setting, repository: Path) -> Iterator[tuple[int, int]]:
    http, grpc, metrics = free_ports(3)
    command: list[str | Path] = [
        sys.executable, TRITON, "--repository", repository, "--http-port", str(http),
        "--grpc-port", str(grpc), "--metrics-port", str(metrics),
    ]  # fmt: skip

    def is_ready() -> bool:
        try:
            with InferenceServerClient(f"127.0.0.1:{grpc}") as client:
                return bool(client.is_model_ready(MODEL))
        except InferenceServerException:
            return False

    with run_process(command, {}, is_ready, setting.folder / "triton.log") as pid:
        yield pid, grpc


@contextmanager
def _run_service(
    setting: Setting, python: Path, script: str, graph: Path, runtime: str = "onnxruntime"
) -> Iterator[Served]:
    (port,) = free_ports(1)
    variables = {**_job(setting, graph, port), "CONTEST_RUNTIME": runtime}
    path = "predict" if script == "lit.py" else "segment"
    log = setting.folder / f"{script.removesuffix('.py')}.log"
    ready = answers(f"http://127.0.0.1:{port}/health")
    with run_process([python, SERVICES / script], variables, ready, log) as pid:
        yield Served(
            (pid,), port, lambda at: HttpClient(f"http://127.0.0.1:{at}/{path}", form=True)
        )


def _job(setting: Setting, graph: Path, port: int) -> dict[str, str]:
    return {
        "CONTEST_GRAPH": str(graph),
        "CONTEST_COLORS": str(setting.files.colors),
        "CONTEST_THREADS": str(setting.threads),
        "CONTEST_PORT": str(port),
        "OMP_NUM_THREADS": str(setting.threads),
        "PYTHONPATH": "",
    }
