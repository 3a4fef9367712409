"""The options of the commands that write a model, the same for each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from export.errors import IllegalSize
from export.symbols.networks import NETWORKS, PRESETS_HELP
from serving.imaging.geometry import Size as ImageSize

NETWORK_PANEL = "Network"
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"Network: {', '.join(NETWORKS)}.",
        rich_help_panel=NETWORK_PANEL,
    ),
]
From: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="Re-export an existing fp32 or fp16 model of --repository (or its folder) at another"
        " --precision; replaces --model.",
        rich_help_panel=NETWORK_PANEL,
    ),
]
Backbone: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Default: resnet50; xception65 for deeplabv3plus, resnet101 for Caffe's DeepLabs.",
        rich_help_panel=NETWORK_PANEL,
    ),
]
Width: TypeAlias = Annotated[
    float | None,
    typer.Option(help="Channel multiplier. Default: 1.", rich_help_panel=NETWORK_PANEL),
]
Aux: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--aux/--no-aux",
        help="Whether the network was trained with an auxiliary head, which is not served.",
        rich_help_panel=NETWORK_PANEL,
    ),
]
OutputStride: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Output stride of deeplabv3plus: 8 or 16. Default: 16.", rich_help_panel=NETWORK_PANEL
    ),
]
Pretrained: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A network of GluonCV's zoo (icnet_resnet50_citys), or a folder written by segserve "
        "import-weights; sets --params, --dataset and the network's options.",
        rich_help_panel=NETWORK_PANEL,
    ),
]
Symbol: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="The network's symbol.json; replaces --model. Default: the one beside --params, a"
        " published one, or one made with MXNet.",
        rich_help_panel=NETWORK_PANEL,
    ),
]
Params: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="The .params file. Default: random weights.", rich_help_panel=NETWORK_PANEL),
]
Size: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="HEIGHTxWIDTH",
        help="Image size. Default: the symbol's own.",
        rich_help_panel=NETWORK_PANEL,
    ),
]
PRECISION_PANEL = "Precision"
Precision: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Precision: fp32, fp16 (for GPUs) or int8 (for CPUs; calibrated on images).",
        rich_help_panel=PRECISION_PANEL,
    ),
]
Root: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder of --dataset. Its train split calibrates int8; its val split measures the"
        " accuracy before and after.",
        rich_help_panel=PRECISION_PANEL,
    ),
]
Calibration: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder of photos to calibrate int8 on, instead of the dataset's. Without a dataset,"
        " every fifth photo is kept to compare labels on.",
        rich_help_panel=PRECISION_PANEL,
    ),
]
CalibrationImages: TypeAlias = Annotated[
    int,
    typer.Option(
        min=1, help="Maximum number of calibration images.", rich_help_panel=PRECISION_PANEL
    ),
]
ValidationImages: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Maximum number of images to measure the accuracy on. Default: all.",
        rich_help_panel=PRECISION_PANEL,
    ),
]
MaxMiouDrop: TypeAlias = Annotated[
    float,
    typer.Option(
        min=0,
        help="Write nothing if more points of mIoU than this are lost.",
        rich_help_panel=PRECISION_PANEL,
    ),
]
MinAgreement: TypeAlias = Annotated[
    float,
    typer.Option(
        min=0,
        max=100,
        help="For photos without labels: minimum percentage of pixels whose label must match fp32.",
        rich_help_panel=PRECISION_PANEL,
    ),
]
Search: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--search",
        help="Try several calibration methods, types, 8-bit weights and layers left in float, and"
        " keep the fastest int8 model that passes.",
        rich_help_panel=PRECISION_PANEL,
    ),
]
Force: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Write the model even if it loses more than the limits allow.",
        rich_help_panel=PRECISION_PANEL,
    ),
]
PIXELS_PANEL = "Classes and pixels"
SeenPixels: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--pixels",
        metavar="NAME",
        help=f"What the network was trained on: {PRESETS_HELP}; short for --mean and --std.",
        rich_help_panel=PIXELS_PANEL,
    ),
]
WRITTEN_PANEL = "What is written"
Head: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Outputs, comma-separated: mask, logits, confidence.", rich_help_panel=WRITTEN_PANEL
    ),
]
Repository: TypeAlias = Annotated[
    Path, typer.Option(help="Model repository to write to.", rich_help_panel=WRITTEN_PANEL)
]
Accuracy: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Measured accuracy and its protocol; stored with the model.",
        rich_help_panel=WRITTEN_PANEL,
    ),
]
Provenance: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Where the weights come from; stored with the model.", rich_help_panel=WRITTEN_PANEL
    ),
]
Family: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Group name: requests to it are routed to the member that best fits the image."
        " Default: none; with --from, the existing model's.",
        rich_help_panel=WRITTEN_PANEL,
    ),
]
DEFAULT_HEAD = "mask,logits"
DEFAULT_REPOSITORY = Path("model_repository")


def split_head(text: str) -> tuple[str, ...]:
    """Returns the outputs that ``--head`` names."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Returns height and width of HEIGHTxWIDTH; None where nothing was said. Raises IllegalSize."""
    if text is None:
        return None
    try:
        size = ImageSize.parse(text)
    except ValueError as error:
        raise IllegalSize(f"--size {error}") from error
    return size.height, size.width
