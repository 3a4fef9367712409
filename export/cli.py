"""``segserve export``: symbol and parameters to a model in the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from export.build import build_model, number_of_classes, set_metadata
from export.errors import ExportError, IllegalSize, UnsupportedPrecision
from export.gate import Limits
from export.labels import check_labels, find_labels, generic_labels
from export.model_files import onnx_files
from export.mxnet_model import SYMBOL_FILE, mxnet_files
from export.params import read_params
from export.pixels import IMAGENET, choose_pixels
from export.precision import PrecisionOptions, check_options, lower_precision
from export.progress import show_steps
from export.provenance import digest, tool_version
from export.random_params import random_params
from export.retarget import retarget, size_rule
from export.symbol import read_symbol
from export.symbol_lookup import FoundSymbol, NetworkName, find_symbol
from export.triton import ModelFacts, write_version
from export.verify import mxnet_installed, verify

_STEPS = 6
_PRECISION = "Precision"


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
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx, or mxnet: the MXNet graph itself, which only Triton serves (its Python"
            " backend, with MXNet).",
        ),
    ] = "onnx",
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, fp16 (for GPUs) or int8 (for CPUs; calibrated on images).",
            rich_help_panel=_PRECISION,
        ),
    ] = "fp32",
    root: Annotated[
        Path | None,
        typer.Option(
            help="Folder of --dataset: its train split calibrates int8, its val split measures"
            " the accuracy before and after.",
            rich_help_panel=_PRECISION,
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photos to calibrate int8 on, instead of the dataset's; without a"
            " dataset every fifth is kept to compare labels on.",
            rich_help_panel=_PRECISION,
        ),
    ] = None,
    calibration_images: Annotated[
        int, typer.Option(min=1, help="At most so many.", rich_help_panel=_PRECISION)
    ] = 64,
    validation_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Measure the accuracy on at most so many; default: all.",
            rich_help_panel=_PRECISION,
        ),
    ] = None,
    max_miou_drop: Annotated[
        float,
        typer.Option(
            min=0,
            help="Write nothing where more points of mIoU are lost than this.",
            rich_help_panel=_PRECISION,
        ),
    ] = Limits.max_miou_drop,
    min_agreement: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            help="The same for photos without labels: the least per cent of pixels whose label"
            " stays what it is in fp32.",
            rich_help_panel=_PRECISION,
        ),
    ] = Limits.min_agreement,
    search: Annotated[
        bool,
        typer.Option(
            "--search",
            help="Try calibration methods, types and layers left in float; keep the fastest int8"
            " that passes.",
            rich_help_panel=_PRECISION,
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write it whatever it loses.", rich_help_panel=_PRECISION),
    ] = False,
    repository: Annotated[Path, typer.Option(help="Folder of models.")] = Path("model_repository"),
    name: Annotated[
        str | None, typer.Option(help="Model name; default: --model, _PRECISION after it.")
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(min=0, help="Default: 4, or the existing model's.")
    ] = None,
    head: Annotated[
        str, typer.Option(help="Outputs: of mask, logits, confidence.")
    ] = "mask,logits",
    mean: Annotated[
        str | None, typer.Option(help="Of RGB values 0 to 1, R,G,B. Default: the network's own.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="The same for the deviation.")] = None,
    bgr: Annotated[
        bool | None, typer.Option("--bgr/--rgb", help="The network sees blue first.")
    ] = None,
    accuracy: Annotated[str | None, typer.Option(help="Measured accuracy and protocol.")] = None,
    provenance: Annotated[str | None, typer.Option(help="Where the weights come from.")] = None,
    check: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare with MXNet where installed.")
    ] = True,
) -> None:
    """Exports a trained network to ONNX in a Triton model repository."""
    console = Console(stderr=True, highlight=False)
    try:
        options = PrecisionOptions(
            precision,
            dataset,
            root,
            calibration,
            calibration_images,
            validation_images,
            Limits(max_miou_drop, min_agreement),
            search,
            force,
        )
        check_options(options)
        _check_format(file_format, precision)
        wanted = _parse_size(size)
        pixels = choose_pixels(model, mean, std, bgr)
        heads = [part.strip() for part in head.split(",") if part.strip()]
        label_set = find_labels(dataset, labels)
        with show_steps(console, _STEPS) as step:
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
            origin = [provenance] if provenance else []
            origin.append(f"symbol {found.source}")
            origin.append(f"parameters {params.name} sha256 {digest(params)}"
                          if params else "random weights")  # fmt: skip
            origin.append(
                f"exported by segserve {tool_version()} at {height}x{columns} {precision}"
            )
            if pixels != IMAGENET:
                origin.append(f"sees {pixels}")
            measured = accuracy
            if file_format == "mxnet":
                files = mxnet_files(graph, weights, height, columns, heads, pixels)
                outcomes = ["the MXNet graph itself: nothing to compare"]
            else:
                built = build_model(graph, weights, height, columns, heads, pixels=pixels)
                step("comparing with MXNet" if check else "not compared with MXNet")
                outcome = "not compared with MXNet"
                if check and mxnet_installed():
                    outcome = str(verify(built, graph, weights, height, columns, pixels))
                    origin.append(outcome)
                elif check:
                    outcome = "MXNet is not installed: the comparison with it was skipped"
                step("measuring the accuracy" if precision == "fp32" else f"making {precision}")
                lowered = lower_precision(built, options, classes, step)
                origin += lowered.provenance
                measured = "; ".join(part for part in (accuracy, lowered.accuracy) if part) or None
                outcomes = [outcome, lowered.outcome]
            step("writing the repository")
            family = model or found.source.partition(".")[0].removesuffix("-symbol")
            # One repository model has one format and one precision.
            variant = "mxnet" if file_format == "mxnet" else precision
            title = name or (family if variant == "fp32" else f"{family}_{variant}")
            facts = ModelFacts(label_set, family, dataset, measured, "; ".join(origin))
            if file_format == "onnx":
                set_metadata(lowered.model, facts.parameters())
                files = onnx_files(lowered.model)
            folder = write_version(repository, title, files, facts, max_batch_size)
    except (ExportError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if params is None:
        console.print("random weights: the labels mean nothing, the speed is that of trained ones")
    if dataset is None and labels is None:
        console.print("classes without names; --dataset or --labels gives them some")
    for line in filter(None, outcomes):
        console.print(line, markup=False, soft_wrap=True)
    main_file = "model.onnx" if file_format == "onnx" else SYMBOL_FILE
    typer.echo(f"{folder}/{main_file}: {title} version {folder.name}, {classes} classes,"
               f" {height}x{columns}, {precision}, {','.join(heads)}")  # fmt: skip


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


def _check_format(file_format: str, precision: str) -> None:
    if file_format not in ("onnx", "mxnet"):
        raise ExportError(f"there is no --format {file_format}; choose onnx or mxnet")
    if file_format == "mxnet" and precision != "fp32":
        raise UnsupportedPrecision(f"--format mxnet is fp32; for {precision} use --format onnx")


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
