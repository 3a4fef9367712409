"""``segserve export``: symbol and parameters to a model in the repository."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from export.build import build_model, number_of_classes, set_metadata
from export.errors import ExportError, IllegalSize, UnsupportedPrecision
from export.labels import check_labels, find_labels, generic_labels
from export.params import read_params
from export.random_params import random_params
from export.retarget import retarget, size_rule
from export.symbol import read_symbol
from export.symbol_lookup import FoundSymbol, NetworkName, find_symbol
from export.triton import ModelFacts, write_model
from export.verify import mxnet_installed, verify

_STEPS = 5


def export(
    model: Annotated[str | None, typer.Option(help="Network: icnet, pspnet, fcn, ...")] = None,
    backbone: Annotated[str, typer.Option(help="Backbone, e.g. resnet50.")] = "resnet50",
    width: Annotated[float, typer.Option(help="Channel multiplier of the network.")] = 1.0,
    dataset: Annotated[
        str | None, typer.Option(help="Names the classes: citys, camvid, ...")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Your own classes: a name a line, #rrggbb after it or not.")
    ] = None,
    symbol: Annotated[
        Path | None, typer.Option(help="symbol.json; default: found by name.")
    ] = None,
    params: Annotated[Path | None, typer.Option(help=".params; default: random weights.")] = None,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH; default: the symbol's own.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32.")] = "fp32",
    repository: Annotated[Path, typer.Option(help="Folder of models.")] = Path("model_repository"),
    name: Annotated[str | None, typer.Option(help="Model name; default: --model.")] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(min=0, help="Default: 4, or the existing model's.")
    ] = None,
    head: Annotated[str, typer.Option(help="Outputs: mask, logits or both.")] = "mask,logits",
    accuracy: Annotated[str | None, typer.Option(help="Measured accuracy and protocol.")] = None,
    provenance: Annotated[str | None, typer.Option(help="Where the weights come from.")] = None,
    check: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare with MXNet where installed.")
    ] = True,
) -> None:
    """Exports a trained network to ONNX in a Triton model repository."""
    console = Console(stderr=True, highlight=False)
    try:
        if precision != "fp32":
            raise UnsupportedPrecision(
                f"--precision {precision} cannot be exported yet; use --precision fp32"
            )
        wanted = _parse_size(size)
        heads = [part.strip() for part in head.split(",") if part.strip()]
        label_set = find_labels(dataset, labels)
        with _progress(console) as step:
            step("reading the symbol")
            classes = len(label_set.names) if label_set else None
            found = _find(symbol, model, backbone, width, dataset, params, classes, wanted)
            height, columns = wanted or _own_size(found)
            graph = retarget(found.graph, height, columns)
            classes = number_of_classes(graph, height, columns)
            label_set = label_set or generic_labels(classes)
            check_labels(label_set, classes)
            step("reading the parameters" if params else "making random parameters")
            weights = read_params(params) if params else random_params(graph, height, columns)
            step("building the graph")
            built = build_model(graph, weights, height, columns, heads)
            origin = [provenance] if provenance else []
            origin.append(f"symbol {found.source}")
            origin.append(f"parameters {params.name} sha256 {_digest(params)}"
                          if params else "random weights")  # fmt: skip
            origin.append(f"exported by segserve {_version()} at {height}x{columns} {precision}")
            step("comparing with MXNet" if check else "not compared with MXNet")
            outcome = "not compared with MXNet"
            if check and mxnet_installed():
                outcome = str(verify(built, graph, weights, height, columns))
                origin.append(outcome)
            elif check:
                outcome = "MXNet is not installed: the comparison with it was skipped"
            step("writing the repository")
            title = name or model or found.source.partition(".")[0].removesuffix("-symbol")
            facts = ModelFacts(label_set, model or title, dataset, accuracy, "; ".join(origin))
            set_metadata(built, facts.parameters())
            folder = write_model(repository, title, built, facts, max_batch_size)
    except (ExportError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if params is None:
        console.print("random weights: the labels mean nothing, the speed is that of trained ones")
    if dataset is None and labels is None:
        console.print("classes without names; --dataset or --labels gives them some")
    console.print(outcome, markup=False, soft_wrap=True)
    typer.echo(f"{folder}/model.onnx: {title} version {folder.name}, {classes} classes,"
               f" {height}x{columns}, {precision}, {','.join(heads)}")  # fmt: skip


@contextmanager
def _progress(console: Console) -> Iterator[_Step]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Step(progress)


class _Step:
    """Calling it names the step that begins and counts the one before as done."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("starting", total=_STEPS, completed=-1)

    def __call__(self, description: str) -> None:
        self.progress.update(self.task, description=description, advance=1)


def _find(
    symbol: Path | None,
    model: str | None,
    backbone: str,
    width: float,
    dataset: str | None,
    params: Path | None,
    classes: int | None,
    size: tuple[int, int] | None,
) -> FoundSymbol:
    if symbol is not None:
        return FoundSymbol(read_symbol(symbol), symbol.name)
    if model is None:
        raise ExportError("name the network with --model, or give its --symbol")
    return find_symbol(NetworkName(model, backbone, width, dataset), params, classes, size)


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise IllegalSize(f"--size {text!r} is no HEIGHTxWIDTH, e.g. 1024x2048")
    return int(match[1]), int(match[2])


def _own_size(found: FoundSymbol) -> tuple[int, int]:
    rule = size_rule(found.graph)
    if rule is None:
        raise IllegalSize(f"{found.source} fits many sizes; choose one with --size HEIGHTxWIDTH")
    return rule.height, rule.width


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _version() -> str:
    try:
        return version("segserve")
    except PackageNotFoundError:
        return "(not installed)"
