"""Measures t_gpu of the large networks, every way that this project can run them (``gpu.sh``).

Builds ICNet-ResNet50 and PSPNet-ResNet101 (19 classes, random weights: speed does not depend on
them), times each on ONNX Runtime's CUDA provider (NCHW and NHWC, with and without CUDA graphs, by
cuDNN's heuristics and by its search), on TensorRT and on PyTorch, batch by batch, and reads from a
session's profile which nodes and copies left the device. What is not installed is named and left
out. The figures are written to ``benchmarks/results``.

Without a CUDA provider it says so and ends with exit code 0; 1 is an error, 2 a wrong option.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.engines.graphs import built_graph, parse_network
from benchmarks.engines.node_profile import NodeProfile, profile_graph
from benchmarks.engines.onnxruntime import PROVIDERS, check_provider
from benchmarks.engines.speed import Speed, check_choice, measure_speed, open_subject
from benchmarks.engines.subject import Case, EngineMissing
from benchmarks.machine import RESULTS, Machine, read_machine, write_result
from export.errors import ExportError
from export.symbols.find import NetworkName
from serving.engines.acceleration import Acceleration
from serving.errors import SegserveError
from serving.imaging.geometry import Size
from serving.palette import load_labels

NETWORKS = ("icnet_resnet50", "pspnet_resnet101")
DATASET = "citys"
WEIGHTS = "random weights"


@dataclass(frozen=True)
class Way:
    """One way to run a graph, by a name that the command line takes."""

    engine: str
    cuda: tuple[tuple[str, str], ...] = ()
    graphs: bool = True

    @property
    def acceleration(self) -> Acceleration:
        """Returns what ``config.pbtxt`` would set for it."""
        return Acceleration(cuda=dict(self.cuda))


WAYS = {
    "cuda": Way("cuda"),
    "cuda-nhwc": Way("cuda", (("prefer_nhwc", "1"),)),
    "cuda-search": Way("cuda", (("cudnn_conv_algo_search", "EXHAUSTIVE"),)),
    "cuda-nhwc-search": Way(
        "cuda", (("prefer_nhwc", "1"), ("cudnn_conv_algo_search", "EXHAUSTIVE"))
    ),
    "cuda-launch": Way("cuda", graphs=False),
    "tensorrt": Way("tensorrt"),
    "torch": Way("torch"),
    "cpu": Way("cpu"),
}


@dataclass(frozen=True)
class Measurement:
    """The speed of one case, run one way.

    Attributes:
        profile: where the nodes ran; None for other engines than ONNX Runtime.
    """

    way: str
    speed: Speed
    profile: NodeProfile | None

    def lines(self) -> list[str]:
        """Returns the lines for the terminal."""
        lines = [f"== {self.way}", *self.speed.lines()]
        if self.profile is not None:
            provider = PROVIDERS[WAYS[self.way].engine]
            lines += self.profile.lines(provider)
            if not self.speed.on_gpu:  # on a GPU these are the times of launches
                slowest = self.profile.slowest(5)
                operators = ", ".join(f"{name} {us / 1000:.2f} ms" for name, us in slowest)
                lines.append(f"slowest: {operators}")
        return lines


def gpu(
    networks: Annotated[
        str, typer.Option(help="Networks as NETWORK_BACKBONE, comma-separated.")
    ] = ",".join(NETWORKS),
    size: Annotated[str, typer.Option(help="Image size, HEIGHTxWIDTH.")] = "1024x2048",
    precision: Annotated[str, typer.Option(help="fp16, fp32 or int8, comma-separated.")] = "fp16",
    ways: Annotated[str, typer.Option(help=f"Any of {', '.join(WAYS)}, comma-separated.")] = (
        "cuda,cuda-nhwc,cuda-search,cuda-nhwc-search,cuda-launch,tensorrt,torch"
    ),
    batches: Annotated[str, typer.Option(help="Images a run, comma-separated.")] = "1,8",
    outputs: Annotated[
        str, typer.Option(help="logits, mask or both, comma-separated.")
    ] = "logits,mask",
    seconds: Annotated[
        float, typer.Option(min=0, help="Seconds of each timing; each is timed twice.")
    ] = 3.0,
    results: Annotated[Path | None, typer.Option(help="Folder of the result file.")] = None,
) -> None:
    """Prints t_gpu for each way, and which nodes left the device."""
    console = Console(stderr=True, highlight=False)
    try:
        pixels = Size.parse(size)
        names = [parse_network(name, DATASET) for name in networks.split(",")]
        precisions = _choices("--precision", precision, ("fp16", "fp32", "int8"))
        chosen = _choices("--ways", ways, tuple(WAYS))
        fetched = _choices("--outputs", outputs, ("logits", "mask"))
        counts = [int(count) for count in _choices("--batches", batches, None)]
        if min(counts) < 1:
            raise ValueError(f"--batches {batches} is not valid: expected numbers of at least 1")
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    machine = read_machine()
    found: list[Measurement] = []
    missing: dict[str, str] = {}
    try:
        if any(WAYS[way].engine == "cuda" for way in chosen):
            check_provider(PROVIDERS["cuda"])
        for case in _cases(names, pixels, precisions, counts, fetched):
            for way in chosen:
                if way in missing:
                    continue
                with console.status(f"{case.title} {case.precision} x{case.batch} {way}"):
                    try:
                        found.append(measure(case, way, seconds))
                    except EngineMissing as error:
                        missing[way] = str(error)
                        typer.echo(f"== {way} left out: {error}\n")
                        continue
                typer.echo("\n".join(found[-1].lines()) + "\n")
    except EngineMissing as error:
        typer.echo(f"no CUDA provider here: {error}")
        typer.echo("nothing was measured; on a machine with an NVIDIA GPU run benchmarks/gpu.sh")
        return
    except (ExportError, SegserveError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    on_gpu = any(measurement.speed.on_gpu for measurement in found)
    folder = results or (RESULTS if on_gpu else None)
    if folder is not None and found:
        typer.echo(f"written to {write_results(folder, found, missing, machine)}")


def measure(case: Case, way: str, seconds: float) -> Measurement:
    """Times a case one way, and profiles it where ONNX Runtime runs it.

    Raises EngineMissing where that engine cannot run here.
    """
    chosen = WAYS[way]
    case = replace(case, graphs=chosen.graphs)
    if chosen.engine != "torch":
        size = (case.height, case.width)
        assert case.network is not None
        graph = built_graph(case.network, case.classes, *size, case.precision)
        case = replace(case, graph=graph)
    subject = open_subject(case, chosen.engine, chosen.acceleration)
    try:
        speed = measure_speed(subject, case, seconds, 5, WEIGHTS)
    finally:
        subject.close()
    profile = None
    if chosen.engine in PROVIDERS:
        profile = profile_graph(case, chosen.engine, chosen.acceleration)
    return Measurement(way, speed, profile)


def write_results(
    folder: Path, found: list[Measurement], missing: dict[str, str], machine: Machine
) -> Path:
    """Writes all measurements and the device as one JSON file; returns its path."""
    device = machine.gpus[0].split(",")[0] if machine.gpus else machine.cpu
    name = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
    stamp = re.sub(r"[^0-9T]", "", machine.date[:19])
    content = {"weights": WEIGHTS, "left_out": missing, "measurements": found}
    return write_result(f"gpu_{name}_{stamp}", content, machine, folder)


def _cases(
    networks: list[NetworkName],
    size: Size,
    precisions: list[str],
    batches: list[int],
    outputs: list[str],
) -> list[Case]:
    classes = len(load_labels(DATASET).names)
    return [
        Case(
            network.stem, network, classes, size.height, size.width, precision, batch, output=output
        )
        for network in networks
        for precision in precisions
        for batch in batches
        for output in outputs
    ]


def _choices(option: str, text: str, known: tuple[str, ...] | None) -> list[str]:
    chosen = [part.strip().lower() for part in text.split(",") if part.strip()]
    if not chosen:
        raise ValueError(f"{option} is empty: expected at least one value")
    if known is not None:
        for value in chosen:
            check_choice(option, value, known)
    return chosen


def main() -> None:
    """Runs the command line."""
    typer.run(gpu)


if __name__ == "__main__":
    main()
