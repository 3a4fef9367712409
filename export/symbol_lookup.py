"""Finds the symbol of a network that was named, not given: beside its parameters, among the
published ones, or generated where MXNet is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from export.errors import SymbolNotFound
from export.symbol import Graph, read_symbol

SYMBOL_FILE = "network-symbol.json"
PUBLISHED = Path(__file__).parent.parent / "benchmarks" / "symbols"


@dataclass(frozen=True)
class NetworkName:
    """What ``--model``, ``--backbone``, ``--width`` and ``--dataset`` name.

    Attributes:
        aux: with the auxiliary head, whose parameters such a network's file holds.
        output_stride: of a network that has several; None is its own.
    """

    model: str
    backbone: str
    width: float
    dataset: str | None
    aux: bool = False
    output_stride: int | None = None

    @property
    def stem(self) -> str:
        """The published file's name without ending, e.g. ``icnet_resnet18_0.5_camvid``."""
        width = "" if self.width == 1 else f"_{self.width:g}"
        aux = "_aux" if self.aux else ""
        stride = "" if self.output_stride is None else f"_os{self.output_stride}"
        return f"{self.model}_{self.backbone}{width}{aux}{stride}_{self.dataset}"


@dataclass(frozen=True)
class FoundSymbol:
    """A symbol and where it comes from, for the provenance."""

    graph: Graph
    source: str


def find_symbol(
    network: NetworkName, params: Path | None, classes: int | None, size: tuple[int, int] | None
) -> FoundSymbol:
    """Looks beside ``params``, in ``benchmarks/symbols``, then asks ``training.symbols``.

    ``classes`` and ``size`` are needed for the last one only. Raises SymbolNotFound naming what
    was tried, InvalidSymbol for a damaged file.
    """
    tried = []
    if params is not None:
        beside = params.parent / SYMBOL_FILE
        if beside.is_file():
            return FoundSymbol(read_symbol(beside), SYMBOL_FILE)
        tried.append(str(beside))
    published = PUBLISHED / f"{network.stem}.json.gz"
    if published.is_file():
        return FoundSymbol(read_symbol(published), published.name)
    tried.append(f"benchmarks/symbols/{published.name}")
    if importlib.util.find_spec("mxnet") is None:
        tried.append("generating it (MXNet is not installed)")
    elif classes is None or size is None:
        tried.append("generating it (needs --size, and --dataset or --labels)")
    else:
        return FoundSymbol(_generate(network, classes, size), "training.symbols")
    raise SymbolNotFound(
        f"no symbol for {network.stem}; tried {', '.join(tried)}; give one with --symbol"
    )


def _generate(network: NetworkName, classes: int, size: tuple[int, int]) -> Graph:
    # MXNet forks and starts threads: it never runs in this process.
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "training.symbols", "--model", network.model]
        command += ["--backbone", network.backbone, "--width", f"{network.width:g}"]
        command += ["--num-classes", str(classes), "--size", f"{size[0]}x{size[1]}"]
        command += ["--aux"] if network.aux else []
        if network.output_stride is not None:
            command += ["--output-stride", str(network.output_stride)]
        done = subprocess.run(
            [*command, "--output", folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            reason = last.partition(": error: ")[2] or last
            raise SymbolNotFound(
                f"cannot generate a symbol for {network.stem}: {reason}; or give one with --symbol"
            )
        return read_symbol(Path(folder) / SYMBOL_FILE)
