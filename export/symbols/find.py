"""Finds the symbol of a network that was named, not given.

It lies beside the network's parameters or among the published ones, or MXNet traces it, where it
is installed: in a process of its own, because MXNet forks and starts threads.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.errors import IllegalSize, SymbolNotFound, TracingFailed
from export.symbols.graph import SYMBOL_FILE, Graph, read_symbol
from export.symbols.networks import MODEL_ALIASES
from export.symbols.shapes import infer_shapes
from export.symbols.sizes import built_size, retarget
from serving.palette import canonical_name

NAMES_FILE = "network-names.json"


@dataclass(frozen=True)
class NetworkSpec:
    """The arguments of ``training.networks.build``.

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


def module_command(module: str) -> list[str]:
    """Returns the start of a command that runs one of our modules in a process of its own.

    ``python -m`` would prefer a folder of that name in the working directory to ours.
    """
    code = (
        "import runpy, sys; sys.path[:1] == [''] and sys.path.pop(0);"
        f" runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-W", "ignore", "-c", code]


def trace_symbol(network: NetworkSpec, classes: int, size: tuple[int, int]) -> TracedSymbol:
    """Builds the network for images of ``size`` (height, width). Takes seconds.

    Raises TracingFailed with the reason alone: an illegal size with the nearest legal one, an
    unknown backbone, or that MXNet is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *module_command("training.networks.tracing"), "--model", network.model,
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


PUBLISHED = Path(__file__).with_name("published")
_ENDING = ".json.gz"


@dataclass(frozen=True)
class NetworkName:
    """The network that ``--model``, ``--backbone``, ``--width`` and ``--dataset`` name.

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
        """Names the network, whichever of its names were used: ``icnet_resnet18_0.5_camvid``."""
        width = "" if self.width == 1 else f"_{self.width:g}"
        aux = "_aux" if self.aux else ""
        stride = "" if self.output_stride is None else f"_os{self.output_stride}"
        model = MODEL_ALIASES.get(self.model, self.model)
        dataset = canonical_name(self.dataset or "")
        return f"{model}_{self.backbone}{width}{aux}{stride}_{dataset or None}"

    @property
    def spec(self) -> NetworkSpec:
        """Returns what MXNet traces it by."""
        return NetworkSpec(self.model, self.backbone, self.width, self.aux, self.output_stride)


@dataclass(frozen=True)
class FoundSymbol:
    """A symbol and where it comes from, for the provenance."""

    graph: Graph
    source: str

    def at(self, height: int, width: int) -> Graph:
        """Returns the symbol for images of height x width. Raises what ``retarget`` raises."""
        return retarget(self.graph, height, width)


def find_symbol(
    network: NetworkName, params: Path | None, classes: int | None, size: tuple[int, int] | None
) -> FoundSymbol:
    """Looks beside ``params``, then among the published symbols, then has MXNet trace the network.

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
    published = published_symbol(network)
    if published is not None:
        return FoundSymbol(read_symbol(published), published.name)
    tried.append(f"the published {', '.join(_published())}")
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
        return FoundSymbol(traced.graph, "training.networks.tracing")
    raise SymbolNotFound(
        f"found no symbol for {network.stem}; tried {', '.join(tried)}; give one with --symbol"
    )


def published_symbol(network: NetworkName) -> Path | None:
    """Returns the published symbol of a network; None where there is none."""
    return _published().get(network.stem)


def _published() -> dict[str, Path]:
    """Returns the published symbols by the names of their networks."""
    found = {}
    for path in sorted(PUBLISHED.glob(f"*{_ENDING}")):
        model, _, rest = path.name.removesuffix(_ENDING).partition("_")
        found[f"{MODEL_ALIASES.get(model, model)}_{rest}"] = path
    return found


def _check_stride(graph: Graph, stride: int, path: Path) -> None:
    """Checks the output stride: the same parameters fit both, so the symbol must be of the wanted
    one."""
    size = built_size(graph)
    if size is None:
        return
    tensors = infer_shapes(graph, *size).tensors.values()
    heights = (shape[2] for shape in tensors if len(shape) == 4)
    smallest = min(height for height in heights if height > 1)
    if smallest != -(-size[0] // stride):
        raise SymbolNotFound(
            f"{path} is a network of another output stride than --output-stride {stride}: leave the"
            " option out, or make a symbol with python -m training.networks.tracing --output-stride"
            f" {stride} and give it with --symbol"
        )


def own_size(found: FoundSymbol) -> tuple[int, int]:
    """Returns height and width that the symbol was built for. Raises IllegalSize where it fits
    many."""
    size = built_size(found.graph)
    if size is None:
        raise IllegalSize(f"{found.source} fits many sizes; choose one with --size HEIGHTxWIDTH")
    return size
