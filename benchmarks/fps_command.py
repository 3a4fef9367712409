"""``benchmarks/fps.py``: one network on one engine, and the time of an image."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import onnxruntime
import typer
from rich.console import Console

from benchmarks.built_graphs import built_graph
from benchmarks.onnx_subject import OnnxSubject
from benchmarks.speed import measure_speed
from benchmarks.subject import Case, EngineMissing, Subject
from export.errors import ExportError
from export.symbols.find import NetworkName
from serving.engines.acceleration import Acceleration
from serving.engines.graph import cut_graph, outputs_of, read_graph, read_spec
from serving.engines.onnxruntime_session import CUDA
from serving.errors import SegserveError
from serving.imaging.geometry import Size
from serving.models.repository import read_model
from serving.palette import load_labels

ENGINES = ("auto", "cpu", "cuda", "tensorrt", "torch", "mxnet")
PRECISIONS = ("fp32", "fp16", "int8")


def open_subject(case: Case, engine: str, acceleration: Acceleration) -> Subject:
    """The case on an engine of ``ENGINES``.

    Raises EngineMissing where it cannot run here.
    """
    if engine == "auto":
        engine = "cuda" if CUDA in onnxruntime.get_available_providers() else "cpu"
    if engine == "torch":
        try:
            from benchmarks.torch_subject import TorchSubject
        except ImportError as error:
            raise EngineMissing(f"no PyTorch here ({error}); pip install torch") from error
        return TorchSubject(case)
    if engine == "mxnet":
        from benchmarks.mxnet_subject import MxnetSubject

        return MxnetSubject(case)
    return OnnxSubject(case, engine, acceleration)


def served_case(repository: Path, model: str, batch: int, threads: int) -> Case:
    """The newest version of a repository's model."""
    folder = read_model(repository / model)
    path = folder.graph(folder.versions[-1])
    whole = read_graph(path)
    spec = read_spec(path, cut_graph(whole, outputs_of(whole)[0]), 1, batch)
    height, width = spec.size.height, spec.size.width
    classes = len(folder.labels.names)
    return Case(model, None, classes, height, width, spec.precision, batch, path, threads=threads)


def fps(
    model: Annotated[str, typer.Option(help="Network, or the model's name with --served.")],
    backbone: Annotated[str, typer.Option(help="Backbone.")] = "resnet50",
    width: Annotated[float, typer.Option(help="Channel multiplier.")] = 1.0,
    dataset: Annotated[str, typer.Option(help="Sets the number of classes.")] = "citys",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH.")] = "1024x2048",
    engine: Annotated[
        str, typer.Option(help=f"{', '.join(ENGINES)}; auto: CUDA where it is, else the CPU.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help=", ".join(PRECISIONS))] = "fp32",
    output: Annotated[
        str | None, typer.Option(help="logits or mask; else logits where there are some.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a run.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="How long to measure.")] = 10.0,
    warmup: Annotated[int, typer.Option(min=1, help="Runs before that.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="0: all cores.")] = 0,
    graphs: Annotated[bool, typer.Option(help="Replay captured CUDA graphs.")] = True,
    nhwc: Annotated[bool, typer.Option(help="CUDA provider: channels last.")] = False,
    served: Annotated[
        bool, typer.Option("--served", help="Measure the repository's model.")
    ] = False,
    repository: Annotated[Path, typer.Option(help="For --served.")] = Path("model_repository"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers.")] = None,
) -> None:
    """Prints the time an image takes in an engine, by itself."""
    console = Console(stderr=True, highlight=False)
    begin = time.perf_counter()
    try:
        check_choice("--engine", engine, ENGINES)
        check_choice("--precision", precision, PRECISIONS)
        cores = threads or len(os.sched_getaffinity(0))
        with console.status("building the graph" if not served else "reading the repository"):
            if served:
                case = served_case(repository, model, batch, cores)
                weights = f"of {repository}"
            else:
                pixels = Size.parse(size)
                network = NetworkName(model, backbone, width, dataset)
                classes = len(load_labels(dataset).names)
                case = Case(
                    network.stem, network, classes, pixels.height, pixels.width, precision, batch,
                    threads=cores,
                )  # fmt: skip
                weights = "random weights (speed does not depend on them)"
                if engine not in ("torch", "mxnet"):
                    graph = built_graph(network, case.classes, case.height, case.width, precision)
                    case = replace(case, graph=graph)
            case = replace(case, output=output, graphs=graphs)
        with console.status("loading"):
            options = Acceleration(cuda={"prefer_nhwc": "1"} if nhwc else {})
            subject = open_subject(case, engine, options)
        with console.status(f"measuring for {seconds:g} s"):
            speed = measure_speed(subject, case, seconds, warmup, weights)
        subject.close()
    except (EngineMissing, ExportError, SegserveError, ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    for line in speed.lines():
        typer.echo(line)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(speed), indent=2) + "\n")
    console.print(f"{time.perf_counter() - begin:.0f} s in all", style="dim")


def check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError where ``value`` is none of ``known``."""
    if value not in known:
        raise ValueError(f"{option} {value!r}: one of {', '.join(known)}")


def main() -> None:
    """Runs the command line."""
    typer.run(fps)
