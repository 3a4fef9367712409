"""Counts the bytes that one request writes to memory: ``python -m benchmarks.studies.copies``.

A real server, one JPEG over HTTP, the answer as PNG. At every hand-over it is checked that a stage
reads the very memory that the stage before wrote; and ``tracemalloc`` (which NumPy and OpenCV
allocate through, too) reports what each stage allocated. So an unnecessary copy or conversion shows
as another buffer, or as bytes beyond the stage's result. The network is one
convolution at the network's real size: what ONNX Runtime does inside is the graph's business.
"""

from __future__ import annotations

import functools
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer

from benchmarks.loadgen.driver import render_images
from benchmarks.machine import RESULTS, ResultsFolder, read_machine, write_result
from export.passes.build import build_model
from export.repository.triton import ModelFacts, write_model
from export.symbols.graph import Entry, Graph, Node
from export.symbols.params import random_params
from serving.engines.onnxruntime import OnnxEngine
from serving.formats import png
from serving.http.body import BodyReader
from serving.http.exchange import Exchange
from serving.http.multipart import Form
from serving.imaging import restore
from serving.imaging.decoder_pool import DecoderPool
from serving.imaging.geometry import Size
from serving.palette import load_labels
from serving.preparation import Views
from serving.settings import Settings
from serving.testing import ServerThread

MODEL = "net"
HEAD_STRIDE = 4


@dataclass(frozen=True)
class Step:
    """The buffers of one stage of one request.

    Attributes:
        result: bytes that it hands on.
        written: bytes of new memory that it took at a time, its result included.
        reads_result: whether it read the very memory that the stage before handed on.
    """

    stage: str
    result: int
    written: int
    reads_result: bool

    @property
    def beyond(self) -> int:
        """Returns the bytes written that are not its result."""
        return max(0, self.written - self.result)


@dataclass(frozen=True)
class _Stage:
    """A function of the server that is watched, where it is looked up.

    ``given`` and ``made`` find the buffer among its arguments, and in its result.
    """

    name: str
    owner: Any
    function: str
    given: Callable[..., object]
    made: Callable[[Any], object]


STAGES = (
    # The file goes to another process, which writes the pixels into memory that both see.
    _Stage(
        "decode",
        DecoderPool,
        "decode",
        lambda pool, still, *_: still.parts[0],
        lambda photo: photo,
    ),
    _Stage("preprocess", Views, "of", lambda photo, plan: photo, lambda views: _only(views)),
    _Stage("infer", OnnxEngine, "run", lambda engine, batch: batch, lambda found: found.logits),
    _Stage("restore", restore, "labels_at", lambda logits, *_: logits, lambda labels: labels),
    _Stage("encode", png, "indexed", lambda labels, plte: labels, lambda data: data),
)


def trace_request(repository: Path, photo: bytes) -> list[Step]:
    """Returns the stages of one request, after another one that warms the server.

    Args:
        repository: holds the model ``net``.
        photo: JPEG.
    """
    settings = Settings(
        repository=repository, http_port=0, grpc_port=0, metrics_port=0, drain_seconds=0.0
    )
    with ServerThread(settings) as server:
        url = f"http://127.0.0.1:{server.ports.http}/v2/models/{MODEL}/segment"
        httpx.post(url, content=photo).raise_for_status()
        tracemalloc.start()
        try:
            with _watched() as steps:
                httpx.post(url, content=photo).raise_for_status()
        finally:
            tracemalloc.stop()
    return steps


@contextmanager
def _watched() -> Iterator[list[Step]]:
    steps: list[Step] = []
    last: list[Any] = []

    def note(stage: str, given: Any, made: Any, before: int) -> None:
        written = tracemalloc.get_traced_memory()[1] - before
        # ONNX Runtime's result is in memory of its own.
        if stage == "infer":
            written += _size(made)
        if given is None:
            written = 0
        steps.append(Step(stage, _size(made), written, not last or _same(given, last[-1])))
        last.append(made)

    def watch(stage: _Stage) -> Callable[..., object]:
        function = getattr(stage.owner, stage.function)

        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> object:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            result = function(*arguments, **named)
            note(stage.name, stage.given(*arguments, **named), stage.made(result), before)
            return result

        return run

    read_image = BodyReader.read_image
    send = Exchange.send

    async def read(*arguments: Any) -> Form:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        form = await read_image(*arguments)
        note("receive", form.image, form.image, before)
        return form

    async def answer(exchange: Exchange, message: Any) -> None:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        await send(exchange, message)
        if message["type"] == "http.response.body":
            note("send", message["body"], b"", before)

    replaced = [(stage.owner, stage.function, watch(stage)) for stage in STAGES]
    replaced += [(BodyReader, "read_image", read), (Exchange, "send", answer)]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    try:
        for owner, name, function in replaced:
            setattr(owner, name, function)
        yield steps
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


def _only(views: Views) -> object:
    """Returns the canvas of a single view."""
    (canvas,) = views.canvases.values()
    return canvas


def _size(buffer: Any) -> int:
    return memoryview(buffer).nbytes


def _same(given: Any, before: Any) -> bool:
    """Returns whether both are the same memory."""
    one, other = (
        np.frombuffer(b, np.uint8) if isinstance(b, bytes | memoryview) else b
        for b in (given, before)
    )
    return bool(np.shares_memory(one, other)) and _size(given) == _size(before)


def write_small_model(repository: Path, size: Size, dataset: str = "citys") -> None:
    """Writes the model ``net``: one convolution; ``mask``, and logits at a quarter of ``size``."""
    labels = load_labels(dataset)
    nodes = (
        Node("null", "data"),
        Node("null", "weight"),
        Node(
            "Convolution",
            "conv",
            (Entry(0), Entry(1)),
            {
                "kernel": "(1, 1)",
                "stride": f"({HEAD_STRIDE}, {HEAD_STRIDE})",
                "num_filter": str(len(labels.names)),
                "no_bias": "True",
            },
        ),
    )
    graph = Graph(nodes, (Entry(2),))
    weights = random_params(graph, size.height, size.width)
    model = build_model(graph, weights, size.height, size.width)
    write_model(repository, MODEL, model, ModelFacts(labels, MODEL, None, None, "random"), 1)


def table(steps: Sequence[Step]) -> str:
    """Returns the steps as a table in Markdown, in kB."""
    rows = ["| stage | reads the memory before it | result, kB | written beyond it, kB |",
            "|---|---|---|---|"]  # fmt: skip
    rows += [
        f"| {s.stage} | {'yes' if s.reads_result else 'NO: a copy'} | {s.result / 1000:.0f} "
        f"| {s.beyond / 1000:.0f} |"
        for s in steps
    ]
    return "\n".join(rows)


def main(
    photo: Annotated[Path | None, typer.Option(help="JPEG; default: a rendered scene.")] = None,
    results: ResultsFolder = RESULTS,
) -> None:
    """Prints and writes a row for each stage, for 1024x2048."""
    size = Size(1024, 2048)
    data = photo.read_bytes() if photo else render_images(size.height, size.width, 1)[0]
    with tempfile.TemporaryDirectory(prefix="segserve-copies-") as folder:
        write_small_model(Path(folder), size)
        steps = trace_request(Path(folder), data)
    typer.echo(table(steps))
    total, beyond = (
        sum(values) for values in zip(*((s.written, s.beyond) for s in steps), strict=True)
    )
    typer.echo(
        f"{total / 1e6:.1f} MB written an image, {beyond / 1e6:.1f} of them beyond the results"
    )
    write_result("copies", {"photo_bytes": len(data), "steps": steps}, read_machine(), results)


if __name__ == "__main__":
    typer.run(main)
