"""``segserve export``: symbol and parameters to a model in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from export import options as given
from export.errors import ExportError
from export.pipeline import ExportRequest, Target, export_symbol
from export.precision.gate import Limits
from export.precision.lower import PrecisionOptions


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
            help="Dataset that names the classes: citys, camvid, folder (with --root), ...",
            rich_help_panel=given.PIXELS_PANEL,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="File of class names, one per line, each optionally followed by #rrggbb.",
            rich_help_panel=given.PIXELS_PANEL,
        ),
    ] = None,
    pixels: given.SeenPixels = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Mean of RGB values from 0 to 1. Default: what the network was trained on, where"
            " it is one of --model's or --pretrained's.",
            rich_help_panel=given.PIXELS_PANEL,
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Standard deviation of RGB values from 0 to 1.",
            rich_help_panel=given.PIXELS_PANEL,
        ),
    ] = None,
    bgr: Annotated[
        bool | None,
        typer.Option(
            "--bgr/--rgb",
            help="Channel order that the network was trained on.",
            rich_help_panel=given.PIXELS_PANEL,
        ),
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
            help="File format: onnx, or mxnet (the MXNet graph itself, for Triton's Python backend"
            " only).",
            rich_help_panel=given.WRITTEN_PANEL,
        ),
    ] = "onnx",
    opset: Annotated[
        int | None,
        typer.Option(
            help="ONNX opset, 17 or 19. 17 replaces deformable convolutions by sampling, for ONNX"
            " Runtime and Triton releases without DeformConv. Default: 19 for networks that have"
            " such convolutions, otherwise 17.",
            rich_help_panel=given.WRITTEN_PANEL,
        ),
    ] = None,
    repository: given.Repository = given.DEFAULT_REPOSITORY,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the model. Default: --model followed by _PRECISION.",
            rich_help_panel=given.WRITTEN_PANEL,
        ),
    ] = None,
    family: given.Family = None,
    max_batch_size: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Largest batch. Default: 4, or the existing model's.",
            rich_help_panel=given.WRITTEN_PANEL,
        ),
    ] = None,
    accuracy: given.Accuracy = None,
    provenance: given.Provenance = None,
    check: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the result with MXNet, if it is installed.",
            rich_help_panel=given.WRITTEN_PANEL,
        ),
    ] = True,
) -> None:
    """Exports a trained network to ONNX in a Triton model repository.

    segserve export --model icnet --dataset citys --size 1024x2048 --params best.params

    segserve export --symbol net-symbol.json --params net-0000.params --labels classes.txt
    --pixels imagenet

    segserve export --pretrained icnet_resnet50_citys --size 1024x2048

    segserve export --model pspnet ... --precision int8 --root CITYSCAPES

    segserve export --from icnet --precision int8 --root CAMVID
    """
    console = Console(stderr=True, highlight=False)
    try:
        request = ExportRequest(
            model, backbone, width, aux, output_stride, existing, symbol, params, pretrained,
            given.parse_size(size), dataset, labels, mean, std, bgr,
            PrecisionOptions(
                precision, dataset, root, calibration, calibration_images, validation_images,
                Limits(max_miou_drop, min_agreement), search, force,
            ),
            given.split_head(head), file_format, opset, check,
            Target(repository, name, family, max_batch_size, accuracy, provenance), pixels,
        )  # fmt: skip
        written = export_symbol(request, console)
    except (ExportError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    for note in written.notes:
        console.print(note, markup=False, soft_wrap=True)
    typer.echo(str(written))
