"""The symbol of one of ``training.networks``, traced by MXNet in a process of its own.

MXNet forks and starts threads, so it never runs in the process that asks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.errors import TracingFailed
from export.symbol import SYMBOL_FILE, Graph, read_symbol

NAMES_FILE = "network-names.json"


@dataclass(frozen=True)
class NetworkSpec:
    """What ``training.networks.build`` is asked for.

    Attributes:
        width: the channels are multiplied by it.
        aux: with the auxiliary head, where the network has one.
        output_stride: 8 or 16, of networks that have several; None is the network's own.
    """

    model: str
    backbone: str
    width: float = 1.0
    aux: bool = False
    output_stride: int | None = None


@dataclass(frozen=True)
class TracedSymbol:
    """A symbol; ``names`` are its parameters' names by those of ``save_parameters``."""

    graph: Graph
    names: Mapping[str, str]


def trace_symbol(network: NetworkSpec, classes: int, size: tuple[int, int]) -> TracedSymbol:
    """Builds the network for images of ``size`` (height, width). Takes seconds.

    Raises TracingFailed with the reason alone: an illegal size with the nearest legal one, an
    unknown backbone, or that MXNet is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-W", "ignore", "-m", "training.symbols", "--model", network.model,
            "--backbone", network.backbone, "--width", f"{network.width:g}",
            "--num-classes", str(classes), "--size", f"{size[0]}x{size[1]}",
            "--output", folder, "--names", *(["--aux"] if network.aux else []),
        ]  # fmt: skip
        if network.output_stride is not None:
            command += ["--output-stride", str(network.output_stride)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise TracingFailed(last.partition(": error: ")[2] or last)
        names: dict[str, str] = json.loads((Path(folder) / NAMES_FILE).read_text())
        return TracedSymbol(read_symbol(Path(folder) / SYMBOL_FILE), names)
