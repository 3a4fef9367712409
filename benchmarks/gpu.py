"""``benchmarks/gpu.sh``: t_gpu of the large networks on ONNX Runtime's CUDA provider.

Builds ICNet-ResNet50 and PSPNet-ResNet101 (19 classes, random weights: speed does not depend on
them) in fp16, times them with the image and the logits in the device's memory, and tells from the
session's profile which nodes and copies fell back to the CPU.

Without a CUDA provider it says so and ends with exit code 0; 1 is an error, 2 a wrong option.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import onnx
import onnxruntime
import typer
from rich.console import Console

from benchmarks.built_graphs import built_graph
from benchmarks.device_speed import (
    CPU,
    CUDA,
    DeviceSpeed,
    ProviderMissing,
    check_provider,
    measure_device,
    provider_options,
)
from export.errors import ExportError
from export.graph_ends import name_nodes
from export.precision_half import to_half
from export.symbol_lookup import NetworkName
from serving.engines.cut import cut_graph
from serving.geometry import Size
from serving.palette import load_labels

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("icnet_resnet50", "pspnet_resnet101")
DATASET = "citys"


@dataclass(frozen=True)
class Measurement:
    """One network in one form on one device."""

    network: str
    size: str
    precision: str
    layout: str
    speed: DeviceSpeed

    @property
    def symbol(self) -> str:
        """``t_gpu`` or ``t_cpu``."""
        return "t_gpu" if self.speed.provider == CUDA else "t_cpu"

    def lines(self) -> list[str]:
        """What the terminal shows."""
        speed = self.speed
        slowest = ", ".join(f"{name} {us / 1000:.2f} ms" for name, us in speed.profile.slowest(5))
        return [
            f"{self.network}, {self.size}, {self.precision}, {self.layout}, cut to {speed.fetched}",
            f"{self.symbol} {speed.per_image_ms:.2f} ms   {1000 / speed.per_image_ms:.2f} fps"
            f"   (p50 {speed.p50_ms:.2f}, p95 {speed.p95_ms:.2f}, {speed.runs} runs;"
            f" {speed.with_copies_ms:.2f} ms with the copies in and out)",
            *speed.profile.lines(speed.provider),
            # On a GPU the profile holds the times of launches, which say nothing of the work.
            *([] if speed.provider == CUDA else [f"slowest: {slowest}"]),
        ]


def gpu(
    networks: Annotated[str, typer.Option(help="NETWORK_BACKBONE, comma-separated.")] = ",".join(
        NETWORKS
    ),
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH.")] = "1024x2048",
    precision: Annotated[str, typer.Option(help="fp16 or fp32, comma-separated.")] = "fp16",
    layouts: Annotated[
        str, typer.Option(help="nchw or nhwc: what the CUDA provider prefers.")
    ] = "nchw,nhwc",
    output: Annotated[str, typer.Option(help="logits (what is served) or mask.")] = "logits",
    seconds: Annotated[float, typer.Option(min=0, help="How long each is timed, twice.")] = 10.0,
    provider: Annotated[str, typer.Option(help="cuda, or cpu to try the script.")] = "cuda",
    results: Annotated[Path | None, typer.Option(help="Folder of the JSON file.")] = None,
) -> None:
    """Prints t_gpu with ONNX Runtime's CUDA provider, and what fell back to the CPU."""
    console = Console(stderr=True, highlight=False)
    wanted = {"cuda": CUDA, "cpu": CPU}.get(provider)
    try:
        if wanted is None:
            raise ValueError(f"--provider {provider}: cuda or cpu")
        pixels = Size.parse(size)
        names = [_network(name) for name in networks.split(",")]
        precisions = _choices("--precision", precision, ("fp16", "fp32"))
        chosen = _choices("--layouts", layouts, ("nchw", "nhwc"))
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    found: list[Measurement] = []
    try:
        if wanted == CUDA and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA and cuDNN from their Python packages
        check_provider(wanted)
        for network in names:
            for form in precisions:
                with console.status(f"building {network.stem} {size} {form}"):
                    graph = _graph(network, pixels, form, output)
                for layout in chosen if wanted == CUDA else chosen[:1]:
                    options = provider_options(wanted, layout == "nhwc")
                    with console.status(f"measuring {network.stem} {form} {layout}"):
                        speed = measure_device(graph, wanted, options, seconds)
                    found.append(Measurement(network.stem, size, form, layout, speed))
                    typer.echo("\n".join(found[-1].lines()) + "\n")
    except ProviderMissing as error:
        typer.echo(f"no CUDA provider here: {error}")
        typer.echo("nothing was measured; on a machine with an NVIDIA GPU run benchmarks/gpu.sh")
        return
    except (ExportError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    folder = results or (RESULTS if wanted == CUDA else None)
    if folder is not None:
        typer.echo(f"written to {write_results(folder, found)}")


def write_results(folder: Path, found: list[Measurement]) -> Path:
    """Writes all measurements, the device and the command as one JSON file; returns its path."""
    now = datetime.now(timezone.utc)
    device = describe_gpu() or platform.processor() or platform.machine()
    content = {
        "command": "benchmarks/gpu.sh " + " ".join(sys.argv[1:]),
        "date": now.isoformat(timespec="seconds"),
        "device": device,
        "versions": f"ONNX Runtime {onnxruntime.__version__}, Python {platform.python_version()}",
        "weights": "random; speed does not depend on them",
        "measurements": [asdict(measurement) for measurement in found],
    }
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "_", device.split(",")[0].lower()).strip("_")
    path = folder / f"gpu_{name}_{now:%Y%m%d_%H%M%S}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return path


def describe_gpu() -> str:
    """Name, driver and memory of the first GPU; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else ""


def _graph(network: NetworkName, size: Size, precision: str, output: str) -> onnx.ModelProto:
    """What the embedded engine would run: the graph cut to one output."""
    classes = len(load_labels(DATASET).names)
    model = onnx.load(str(built_graph(network, classes, size.height, size.width)))
    try:
        model = cut_graph(model, output)
    except ValueError as error:
        raise ExportError(f"--output {output}: {error}") from error
    if precision == "fp32":
        return model
    name_nodes(model)
    return to_half(model)


def _network(text: str) -> NetworkName:
    name, _, backbone = text.strip().partition("_")
    if not backbone:
        raise ValueError(f"{text!r} is no NETWORK_BACKBONE, e.g. {NETWORKS[0]}")
    return NetworkName(name, backbone, 1.0, DATASET)


def _choices(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    chosen = [part.strip().lower() for part in text.split(",") if part.strip()]
    if not chosen or set(chosen) - set(known):
        raise ValueError(f"{option} {text!r}: of {', '.join(known)}, comma-separated")
    return chosen


def main() -> None:
    """Runs the command line."""
    typer.run(gpu)


if __name__ == "__main__":
    main()
