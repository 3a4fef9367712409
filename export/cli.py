"""``segserve export``: symbol and parameters to a model in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from export import options as given
from export.errors import ExportError
from export.existing import CopyOptions, check_outputs, read_existing, write_copy
from export.options import parse_size, refuse_given, split_head
from export.passes.build import build_model, check_opset, number_of_classes, set_metadata
from export.precision.gate import Limits
from export.precision.lower import PrecisionOptions, check_options, lower_precision
from export.progress import show_steps
from export.repository.files import ONNX_FILE, onnx_files
from export.repository.labels import check_labels, find_labels, generic_labels
from export.repository.mxnet_model import mxnet_files
from export.repository.triton import ModelFacts, variant_name, write_version
from export.source import NamedNetwork, name_network
from export.symbols.find import FoundSymbol, find_symbol, own_size
from export.symbols.graph import SYMBOL_FILE, read_symbol
from export.symbols.initial import random_params
from export.symbols.normalisation import IMAGENET, choose_pixels
from export.symbols.params import digest, read_params, tool_version
from export.symbols.sizes import retarget
from export.verify import mxnet_installed, verify

_STEPS = 6
_IMAGES = "Classes and pixels"


def export(
    model: given.Model = None,
    backbone: given.Backbone = None,
    width: given.Width = None,
    aux: given.Aux = None,
    output_stride: given.OutputStride = None,
    existing: given.From = None,
    symbol: given.Symbol = None,
    params: given.Params = None,
    pretrained: given.Pretrained = None,
    size: given.Size = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Names the classes: citys, camvid, folder (with --root), ...",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Your own classes: a name a line, #rrggbb after it or not.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Of values from 0 to 1. Default: what the network was trained on.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="The same for the deviation.", rich_help_panel=_IMAGES),
    ] = None,
    bgr: Annotated[
        bool | None,
        typer.Option("--bgr/--rgb", help="Blue comes first.", rich_help_panel=_IMAGES),
    ] = None,
    precision: given.Precision = PrecisionOptions.precision,
    root: given.Root = None,
    calibration: given.Calibration = None,
    calibration_images: given.CalibrationImages = PrecisionOptions.calibration_images,
    validation_images: given.ValidationImages = None,
    max_miou_drop: given.MaxMiouDrop = Limits.max_miou_drop,
    min_agreement: given.MinAgreement = Limits.min_agreement,
    search: given.Search = False,
    force: given.Force = False,
    head: given.Head = given.DEFAULT_HEAD,
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx, or mxnet: the MXNet graph itself, for Triton's Python backend alone.",
            rich_help_panel=given.WRITTEN_PANEL,
        ),
    ] = "onnx",
    opset: Annotated[
        int | None,
        typer.Option(
            help="17 samples deformable convolutions, for ONNX Runtime and Triton releases without"
            " DeformConv. Default: 19 for networks that have some, else 17.",
            rich_help_panel=given.WRITTEN_PANEL,
        ),
    ] = None,
    repository: given.Repository = given.DEFAULT_REPOSITORY,
    name: Annotated[
        str | None,
        typer.Option(
            help="Default: --model, _PRECISION after it.", rich_help_panel=given.WRITTEN_PANEL
        ),
    ] = None,
    family: given.Family = None,
    max_batch_size: Annotated[
        int | None,
        typer.Option(
            min=0, help="Default: 4, or the existing model's.", rich_help_panel=given.WRITTEN_PANEL
        ),
    ] = None,
    accuracy: given.Accuracy = None,
    provenance: given.Provenance = None,
    check: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare with MXNet where installed.",
            rich_help_panel=given.WRITTEN_PANEL,
        ),
    ] = True,
) -> None:
    """Exports a trained network to ONNX in a Triton model repository.

    segserve export --model icnet --dataset citys --size 1024x2048 --params best.params

    segserve export --symbol net-symbol.json --params net-0000.params --labels classes.txt

    segserve export --pretrained icnet_resnet50_citys --size 1024x2048

    segserve export --model pspnet ... --precision int8 --root CITYSCAPES

    segserve export --from icnet --precision int8 --root CAMVID
    """
    console = Console(stderr=True, highlight=False)
    try:
        if existing is not None:
            refuse_given(
                f"--from {existing} brings its network, size, classes and pixels",
                {
                    "--model": model, "--backbone": backbone, "--width": width, "--aux": aux,
                    "--output-stride": output_stride, "--symbol": symbol, "--params": params,
                    "--pretrained": pretrained, "--size": size, "--labels": labels,
                    "--mean": mean, "--std": std, "--bgr or --rgb": bgr, "--opset": opset,
                },
            )  # fmt: skip
        named = name_network(
            pretrained,
            symbol,
            NamedNetwork(model, backbone, width, aux, output_stride, dataset, params),
            console,
        )
        model, dataset, params = named.model, named.dataset, named.params
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
        if existing is not None:
            told = CopyOptions(name, family, max_batch_size, accuracy, provenance)
            start = read_existing(existing, repository)
            check_outputs(start, file_format, split_head(head))
            folder, outcome = write_copy(start, repository, options, told, console)
            console.print(outcome, markup=False, soft_wrap=True)
            typer.echo(start.summary(folder, precision))
            return
        check_options(options)
        given.check_format(file_format, precision, opset)
        wanted = parse_size(size)
        check_opset(opset)
        pixels = choose_pixels(model, mean, std, bgr, named.backbone)
        heads = split_head(head)
        label_set = find_labels(dataset, labels, root)
        with show_steps(console, _STEPS) as step:
            step("reading the symbol")
            classes = len(label_set.names) if label_set else None
            if symbol is not None:
                found = FoundSymbol(read_symbol(symbol), symbol.name)
            else:
                found = find_symbol(named.network, params, classes, wanted)
            height, columns = wanted or own_size(found)
            graph = retarget(found.graph, height, columns)
            classes = number_of_classes(graph, height, columns)
            label_set = label_set or generic_labels(classes)
            check_labels(label_set, classes)
            step("reading the parameters" if params else "making random parameters")
            weights = read_params(params) if params else random_params(graph, height, columns)
            step("building the graph")
            origin = [provenance] if provenance else []
            origin.append(f"symbol {found.source}")
            read = f"parameters {params.name} sha256 {digest(params)}" if params else ""
            origin.append(read or "random weights")
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
                built = build_model(
                    graph, weights, height, columns, heads, pixels=pixels, opset=opset
                )
                step("comparing with MXNet" if check else "not compared with MXNet")
                outcome = "not compared with MXNet"
                if check and mxnet_installed():
                    outcome = str(verify(built, graph, weights, height, columns, pixels))
                    origin.append(outcome)
                elif check:
                    outcome = "MXNet is not installed: the comparison with it was skipped"
                lowered = lower_precision(built, options, classes, step)
                origin += lowered.provenance
                measured = lowered.accuracy_after(accuracy)
                outcomes = [outcome, lowered.outcome]
            step("writing the repository")
            stem = model or found.source.partition(".")[0].removesuffix("-symbol")
            variant = "mxnet" if file_format == "mxnet" else precision
            title = name or variant_name(stem, variant)
            group = family or given.family_name(stem, dataset)
            facts = ModelFacts(label_set, group, dataset, measured, "; ".join(origin))
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
    main_file = ONNX_FILE if file_format == "onnx" else SYMBOL_FILE
    typer.echo(given.summary(folder, main_file, classes, (height, columns), precision, heads))
