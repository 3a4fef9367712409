"""``segserve import-onnx``: an ONNX network made elsewhere to a model in the repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from export import options as given
from export.datasets import find_labels, read_labels
from export.errors import ExportError, InvalidLabels, InvalidNetwork
from export.onnx_import.network import ImportOptions, InputFormat, import_network
from export.onnx_import.outputs import Labels
from export.onnx_import.source import opset_of, read_network
from export.onnx_import.verify import verify_import
from export.options import parse_size, split_head
from export.passes.build import PASSES
from export.pipeline import Target, Written, write_network
from export.precision.gate import Limits
from export.precision.lower import PrecisionOptions, check_options
from export.progress import show_steps
from export.repository.triton import ONNX_FILE, ModelFacts, variant_name
from export.source import refuse_given
from export.symbols.networks import PRESETS_HELP, find_preset, parse_triple
from export.symbols.params import digest
from serving.palette import LabelSet, canonical_name, default_palette, largest_id, parse_palette

_DEFAULT_BATCH = 4
_STEPS = 5


def import_onnx(
    network: Annotated[Path, typer.Argument(help="The .onnx file to import.")],
    pixels: given.SeenPixels = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="Mean: three numbers, comma-separated, in the network's channel order.",
            rich_help_panel=given.PIXELS_PANEL,
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            help="Standard deviation: three numbers, comma-separated, in the same order.",
            rich_help_panel=given.PIXELS_PANEL,
        ),
    ] = None,
    value_range: Annotated[
        int | None,
        typer.Option(
            "--range",
            help="Value of a white pixel before mean and std are applied: 1 or 255.",
            rich_help_panel=given.PIXELS_PANEL,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class names: a file with one per line, or a list such as 'road,sky,car'."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Dataset that names the classes: citys, camvid, ...")
    ] = None,
    palette: Annotated[
        str | None, typer.Option(help="Colours of the classes: '#804080 #f423e8 ...'")
    ] = None,
    layout: Annotated[
        str, typer.Option(help="Layout of the network's input: NCHW or NHWC.")
    ] = "NCHW",
    channel_order: Annotated[
        str | None,
        typer.Option(
            help="Channel order of the network's input: rgb or bgr. Default: rgb, or what --pixels"
            " names."
        ),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(
            help="Channels of the network's input: 3, or 1 for gray. Default: what the file says."
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Image size as HEIGHTxWIDTH, for networks that take any size."),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Name of the output to use. Default: the first one.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="For one-channel outputs: values above this are the second class."),
    ] = None,
    align_corners: Annotated[
        bool | None,
        typer.Option(
            "--align-corners/--half-pixel", help="How an output smaller than the image is resized."
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
    repository: given.Repository = given.DEFAULT_REPOSITORY,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the model. Default: the file's name followed by _PRECISION.",
            rich_help_panel=given.WRITTEN_PANEL,
        ),
    ] = None,
    family: given.Family = None,
    max_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Largest batch. Default: 4, or 1 if the network takes one image only.",
            rich_help_panel=given.WRITTEN_PANEL,
        ),
    ] = None,
    accuracy: given.Accuracy = None,
    provenance: given.Provenance = None,
    check: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the result with the original network.",
            rich_help_panel=given.WRITTEN_PANEL,
        ),
    ] = True,
) -> None:
    """Imports an ONNX network made by PyTorch, PaddleSeg, MMSegmentation, ... into the repository.

    Example, a torchvision network: segserve import-onnx fcn.onnx --dataset voc --size 520x520
    --pixels imagenet
    """
    console = Console(stderr=True, highlight=False)
    title = name or variant_name(network.stem, precision)
    try:
        form = _input_format(pixels, mean, std, value_range, layout, channel_order)
        labels = _label_set(classes, dataset, root, palette, threshold is not None)
        heads = split_head(head)
        options = ImportOptions(
            form, len(labels.names), parse_size(size), output, threshold, align_corners, heads,
            channels,
        )  # fmt: skip
        lowering = PrecisionOptions(
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
        check_options(lowering)
        with show_steps(console, _STEPS) as step:
            step("reading the network")
            source = read_network(network)
            step("building the graph")
            imported = import_network(source, options)
            step("comparing with the network" if check else "not compared with the network")
            batches, outcome = imported.batches, "not compared with the network"
            if check:
                result, batches = verify_import(network, source, imported, options)
                outcome = f"verified: {result}"
            batch = _batch_size(max_batch_size, batches, repository / title)
            notes = [provenance] if provenance else []
            notes += [
                f"imported from {network.name} sha256 {digest(network)}",
                f"made by {source.producer_name or 'unknown'} {source.producer_version}".strip(),
                f"opset {opset_of(source)}"
                + ("" if opset_of(source) >= opset_of(imported.model) else " converted to"
                   f" {opset_of(imported.model)}"),
                f"input {form}",
                *imported.notes,
                *([] if batches else ["one image a run: the batch is written into the network"]),
                outcome,
            ]  # fmt: skip
            facts = ModelFacts(
                labels,
                family,
                dataset and canonical_name(dataset),
                accuracy,
                "; ".join(notes),
            )
            passes = {PASSES: ",".join(imported.passes)}
            target = Target(repository, max_batch_size=batch)
            folder, cost = write_network(
                imported.model, facts, lowering, target, title, step, passes
            )
    except (ExportError, OSError, ValueError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    one = [] if batches else ["one image a run"]
    for note in filter(None, (f"sees {form.pixels}", *imported.notes, *one, outcome, cost)):
        console.print(note, markup=False, soft_wrap=True)
    outputs = ("mask",) if isinstance(imported.found, Labels) else heads
    shape = (imported.height, imported.width)
    written = Written(folder, ONNX_FILE, len(labels.names), shape, precision, outputs)
    typer.echo(f"{written}, opset {opset_of(imported.model)}")


def _input_format(
    preset: str | None,
    mean: str | None,
    std: str | None,
    maximum: int | None,
    layout: str,
    order: str | None,
) -> InputFormat:
    if layout.upper() not in ("NCHW", "NHWC"):
        raise InvalidNetwork(f"--layout {layout} is not a valid layout: expected NCHW or NHWC")
    if order is not None and order.lower() not in ("rgb", "bgr"):
        raise InvalidNetwork(
            f"--channel-order {order} is not a valid order of channels: expected rgb or bgr"
        )
    bgr = None if order is None else order.lower() == "bgr"
    last = layout.upper() == "NHWC"
    given = {"--mean": mean, "--std": std, "--range": maximum}
    if preset is not None:
        refuse_given(f"--pixels {preset} says what the network sees", given)
        return InputFormat.of(find_preset(preset), bgr, channels_last=last)
    if mean is None or std is None or maximum is None:
        missing = ", ".join(option for option, value in given.items() if value is None)
        raise InvalidNetwork(
            "an ONNX file does not say what pixels its network was trained on: name them with"
            f" --pixels {PRESETS_HELP}, or say {missing} too"
        )
    if maximum not in (1, 255):
        raise InvalidNetwork(
            f"--range {maximum} is not valid: expected 1 or 255, the value of a white pixel before"
            " mean and std are applied"
        )
    means = parse_triple("--mean", mean, gray=True)
    stds = parse_triple("--std", std, positive=True, gray=True)
    if maximum == 1 and max(map(abs, means)) > 1:
        raise InvalidNetwork(f"--mean {mean} is of values from 0 to 255: give --range 255")
    if maximum == 255 and max(stds) < 1:
        raise InvalidNetwork(f"--std {std} is of values from 0 to 1: give --range 1")
    return InputFormat(means, stds, maximum, bool(bgr), last)


def _label_set(
    classes: str | None,
    dataset: str | None,
    root: Path | None,
    palette: str | None,
    binary: bool,
) -> LabelSet:
    """Returns the labels of --classes, else of --dataset, in the colours of --palette where
    given."""
    labels: LabelSet | None
    if classes is None:
        labels = find_labels(dataset, None, root)
        if labels is None:
            raise InvalidLabels(
                "the classes have no names: give --classes, or a known dataset with --dataset"
            )
    elif "," not in classes and (not binary or Path(classes).is_file()):
        labels = read_labels(Path(classes))
    else:
        names = tuple(part.strip() for part in classes.split(","))
        if not all(names) or len(set(names)) != len(names):
            raise InvalidLabels(
                f"--classes {classes!r} is not valid: expected each name once, none empty"
            )
        labels = LabelSet(names, default_palette(len(names)), largest_id(len(names)))
    if binary and len(labels.names) == 1:
        names = ("background", *labels.names)
        labels = LabelSet(names, tuple(default_palette(2)))
    if palette is not None:
        colors = parse_palette(palette)
        if len(colors) != len(labels.names):
            raise InvalidLabels(
                f"--palette has {len(colors)} colours for {len(labels.names)} classes: expected one"
                " for each"
            )
        labels = replace(labels, colors=colors)
    return labels


def _batch_size(wanted: int | None, batches: bool, existing: Path) -> int | None:
    """Returns the ``max_batch_size`` to write; None leaves an existing model's."""
    if batches:
        return wanted if wanted is not None or existing.exists() else _DEFAULT_BATCH
    if wanted not in (None, 1):
        raise InvalidNetwork(
            f"--max-batch-size {wanted} is not valid: expected 1, as the network takes one image at"
            " a time; export it with a dynamic batch"
        )
    return 1
