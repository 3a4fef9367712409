"""Prints the files that one request crosses, in the order in which it first enters them.

    python -m benchmarks.studies.roads              # all roads, as docs/architecture.md shows them
    python -m benchmarks.studies.roads http grpc    # some of them

A file counts when one of its functions runs for the request. What runs while a module is imported
does not count, nor does what runs at the same time for other reasons (``BACKGROUND``). The server
is a real one in this process, on free ports of the loopback interface. It answers two requests
before the one that is traced, so nothing is loaded, compiled or connected on the road. Decoders are
processes of their own and are not traced; the pool that hands images to them is.

Every road is traced in a process of its own, so none depends on what another has loaded.
"""

from __future__ import annotations

import argparse
import http.client
import inspect
import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from types import CodeType, FrameType

import cv2
import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc

from export.symbols.find import PUBLISHED
from export.symbols.graph import SYMBOL_FILE, Graph, Node, read_symbol, write_symbol
from export.symbols.params import random_params, write_params
from export.symbols.sizes import retarget
from serving import cli
from serving.observability.log_stream import LogStream
from serving.observability.loop_watchdog import LoopWatchdog
from serving.observability.memory_return import MemoryReturner
from serving.observability.metrics_server import MetricsServer
from serving.server import Server, warm_stages
from serving.settings import Settings
from serving.testing import ServerThread

ROOT = Path(__file__).parents[2]
PARAMS_FILE = "network.params"
SYMBOL = PUBLISHED / "icnet_resnet50_citys.json.gz"
CLASSES = 19
# The published network is traced at a small size, with a sixteenth of its channels.
SIZE = (64, 128)
NARROWER = 16
# Timers and threads that run whether or not there are requests, by what starts them.
BACKGROUND = (LoopWatchdog, MemoryReturner, MetricsServer, LogStream)
WARM_REQUESTS = 2
# A request has ended when nothing of the server has run for this long.
QUIET_S = 0.5


@dataclass(frozen=True)
class Road:
    """A request to trace: its title, the package whose files count, and what traces it."""

    title: str
    package: str
    trace: Callable[[], list[str]]


class Trace:
    """Records the files of one package whose functions run while it is on.

    Threads that were started inside :meth:`install` are traced, and the thread that called it.

    Args:
        package: the folder whose files count.
        background: files whose functions, and what they call, do not count.
    """

    def __init__(self, package: Path, background: frozenset[str] = frozenset()) -> None:
        self._prefix = f"{package}/"
        self._background = background
        self._on = False
        self._files: dict[str, None] = {}
        self._last = time.monotonic()

    @contextmanager
    def install(self) -> Iterator[None]:
        """Traces this thread and those that are started meanwhile."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def record(self, request: Callable[[], None]) -> list[str]:
        """Returns the files, relative to the package, in the order of their first call."""
        self._files.clear()
        self._last = time.monotonic()
        self._on = True
        try:
            request()
            while time.monotonic() < self._last + QUIET_S:
                time.sleep(QUIET_S / 10)
        finally:
            self._on = False
        return [file.removeprefix(self._prefix) for file in self._files]

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        if not self._on or event != "call" or not self._counts(frame.f_code):
            return
        if any(map(self._excludes, _callers(frame))):
            return
        self._files.setdefault(frame.f_code.co_filename)
        self._last = time.monotonic()

    def _counts(self, code: CodeType) -> bool:
        return code.co_filename.startswith(self._prefix)

    def _excludes(self, code: CodeType) -> bool:
        """Says whether what this code calls runs for an import, or in the background."""
        if code.co_filename in self._background:
            return True
        return code.co_name == "<module>" and self._counts(code)


def _callers(frame: FrameType) -> Iterator[CodeType]:
    current: FrameType | None = frame
    while current is not None:
        yield current.f_code
        current = current.f_back


def trace_http() -> list[str]:
    """Returns the files of serving/ that a JPEG crosses to become a PNG, over HTTP."""
    body = encode_photo()

    def request(server: Server) -> Callable[[], None]:
        connection = http.client.HTTPConnection("127.0.0.1", server.ports.http)

        def send() -> None:
            headers = {"Content-Type": "image/jpeg", "Accept": "image/png"}
            connection.request("POST", "/v2/models/net/segment", body, headers)
            answer = connection.getresponse()
            if not answer.read().startswith(b"\x89PNG"):
                raise RuntimeError(f"expected a PNG, got status {answer.status}")

        return send

    return trace_serving(request)


def trace_grpc() -> list[str]:
    """Returns the files of serving/ that a ModelInfer with a JPEG in a BYTES tensor crosses."""
    message = oip.ModelInferRequest(model_name="net")
    tensor = message.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(encode_photo())
    message.outputs.add(name="mask")

    def request(server: Server) -> Callable[[], None]:
        channel = grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}")
        stub = oip_grpc.GRPCInferenceServiceStub(channel)

        def send() -> None:
            stub.ModelInfer(message)

        return send

    return trace_serving(request)


def trace_export() -> list[str]:
    """Returns the files of export/ that ``segserve export --symbol`` crosses.

    MXNet, where it is installed, compares in a process of its own, which is not traced.
    """
    trace = Trace(ROOT / "export")
    with tempfile.TemporaryDirectory() as folder, trace.install():
        write_network(Path(folder))
        return trace.record(lambda: export_network(Path(folder)))


def trace_serving(request: Callable[[Server], Callable[[], None]]) -> list[str]:
    """Returns the files of serving/ that one request to a warm server crosses.

    Args:
        request: makes, for a server, the function that sends one request and reads its answer.
    """
    background = frozenset(inspect.getfile(kind) for kind in BACKGROUND)
    trace = Trace(ROOT / "serving", background)
    with tempfile.TemporaryDirectory() as folder:
        # Before the trace is installed, which makes compiling several times slower.
        warm_stages()
        write_network(Path(folder))
        export_network(Path(folder))
        settings = Settings(
            repository=Path(folder), http_port=0, grpc_port=0, metrics_port=0, drain_seconds=0.0
        )
        with trace.install(), ServerThread(settings) as server:
            send = request(server)
            for _ in range(WARM_REQUESTS):
                send()
            return trace.record(send)


def write_network(folder: Path) -> None:
    """Writes a small ICNet as MXNet does: a symbol and parameters, which are random."""
    graph = retarget(narrow(read_symbol(SYMBOL)), *SIZE)
    write_symbol(graph, folder / SYMBOL_FILE)
    write_params(random_params(graph, *SIZE), folder / PARAMS_FILE)


def export_network(folder: Path) -> None:
    """Runs ``segserve export --symbol`` on a folder's network; the model is called ``net``."""
    network = ["--symbol", str(folder / SYMBOL_FILE), "--params", str(folder / PARAMS_FILE)]
    target = ["--dataset", "citys", "--pixels", "imagenet", "--name", "net"]
    sys.argv = ["segserve", "export", *network, *target, "--repository", str(folder)]
    output = StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"segserve export failed: {output.getvalue()}") from end


def narrow(graph: Graph) -> Graph:
    """Returns the network with a sixteenth of its channels; the classifiers keep theirs."""

    def narrowed(node: Node) -> Node:
        filters = int(node.attrs.get("num_filter", 0))
        if filters < NARROWER or filters == CLASSES:
            return node
        return replace(node, attrs={**node.attrs, "num_filter": str(filters // NARROWER)})

    return Graph(tuple(map(narrowed, graph.nodes)), graph.heads)


def encode_photo() -> bytes:
    """Returns a JPEG that is larger than the network's image."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 170, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", noise)[1])


ROADS = {
    "http": Road("A JPEG in, a PNG out, over HTTP", "serving", trace_http),
    "grpc": Road("gRPC ModelInfer with a JPEG as BYTES", "serving", trace_grpc),
    "export": Road("`segserve export --symbol`", "export", trace_export),
}


def format_road(road: Road, files: Sequence[str]) -> str:
    """Returns a road as a paragraph of Markdown: rooms and files as they are first entered."""
    rooms = []
    for room, group in itertools.groupby(map(Path, files), key=lambda file: file.parent):
        names = ", ".join(file.stem for file in group)
        rooms.append(names if room == Path() else f"`{room}/` {names}")
    return f"**{road.title}** crosses {len(files)} files of `{road.package}/`: {' → '.join(rooms)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("roads", nargs="*", metavar="ROAD", help=f"any of {', '.join(ROADS)}")
    names = parser.parse_args().roads or list(ROADS)
    for unknown in [name for name in names if name not in ROADS]:
        parser.error(f"{unknown!r} is not a road: expected any of {', '.join(ROADS)}")
    if len(names) == 1:
        road = ROADS[names[0]]
        print(format_road(road, road.trace()))
        return
    for name in names:
        command = [sys.executable, "-m", "benchmarks.studies.roads", name]
        print(
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
        )


if __name__ == "__main__":
    main()
