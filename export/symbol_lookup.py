"""Finds the symbol of a network that was named, not given: beside its parameters, among the
published ones, or generated where MXNet is installed."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from export.errors import SymbolNotFound, TracingFailed
from export.retarget import built_size
from export.shapes import infer_shapes
from export.symbol import SYMBOL_FILE, Graph, read_symbol
from export.traced_symbol import NetworkSpec, trace_symbol

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

    @property
    def spec(self) -> NetworkSpec:
        """To have it traced by."""
        return NetworkSpec(self.model, self.backbone, self.width, self.aux, self.output_stride)


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
    was tried or that the symbol beside has another output stride, InvalidSymbol for a damaged file.
    """
    tried = []
    if params is not None:
        beside = params.parent / SYMBOL_FILE
        if beside.is_file():
            graph = read_symbol(beside)
            if network.output_stride is not None:
                _check_stride(graph, network.output_stride, beside)
            return FoundSymbol(graph, SYMBOL_FILE)
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
        try:
            traced = trace_symbol(network.spec, classes, size)
        except TracingFailed as error:
            raise SymbolNotFound(
                f"cannot generate a symbol for {network.stem}: {error}; or give one with --symbol"
            ) from error
        return FoundSymbol(traced.graph, "training.symbols")
    raise SymbolNotFound(
        f"no symbol for {network.stem}; tried {', '.join(tried)}; give one with --symbol"
    )


def _check_stride(graph: Graph, stride: int, path: Path) -> None:
    """The same parameters fit both strides: what was asked for must be what lies there."""
    size = built_size(graph)
    if size is None:
        return
    tensors = infer_shapes(graph, *size).tensors.values()
    heights = (shape[2] for shape in tensors if len(shape) == 4)
    smallest = min(height for height in heights if height > 1)
    if smallest != -(-size[0] // stride):
        raise SymbolNotFound(
            f"{path} is a network of another output stride than --output-stride {stride}: leave the"
            " option out, or make a symbol with python -m training.symbols --output-stride"
            f" {stride} and give it with --symbol"
        )
