"""What a service is told: by variables, so that every kind of server can pass it on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One network to serve.

    Attributes:
        graph: ``model.onnx``, or the folder of an MXNet symbol and its parameters.
        colors: 768 bytes, red, green and blue of each class id.
        threads: of one run.
        port: on 127.0.0.1.
    """

    graph: Path
    colors: bytes
    threads: int
    port: int


def read_job() -> Job:
    """Raises KeyError for a variable that is missing."""
    return Job(
        Path(os.environ["CONTEST_GRAPH"]),
        Path(os.environ["CONTEST_COLORS"]).read_bytes(),
        int(os.environ["CONTEST_THREADS"]),
        int(os.environ["CONTEST_PORT"]),
    )
