"""The options of the commands that write a model, the same for each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from export.errors import IllegalSize
from export.symbols.networks import NETWORKS
from serving.geometry import Size as ImageSize

NETWORK_PANEL = "Network"
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(NETWORKS)}.",
        rich_help_panel=NETWORK_PANEL,
    ),
]
From: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="A model of --repository (or its folder) in fp32 or fp16, instead of --model: the same"
        " network once more, in another --precision.",
        rich_help_panel=NETWORK_PANEL,
    ),
]
Backbone: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Default: resnet50; xception65 of deeplabv3plus, resnet101 of Caffe's DeepLabs.",
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
        help="The network was trained with an auxiliary head; it is not served.",
        rich_help_panel=NETWORK_PANEL,
    ),
]
OutputStride: TypeAlias = Annotated[
    int | None,
    typer.Option(help="8 or 16, of deeplabv3plus. Default: 16.", rich_help_panel=NETWORK_PANEL),
]
Pretrained: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of GluonCV's zoo (icnet_resnet50_citys), or a folder of segserve import-weights: "
        "stands for --params, --dataset and all that names the network.",
        rich_help_panel=NETWORK_PANEL,
    ),
]
Symbol: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="symbol.json, instead of --model. Default: beside --params, published, or made with"
        " MXNet.",
        rich_help_panel=NETWORK_PANEL,
    ),
]
Params: TypeAlias = Annotated[
    Path | None,
    typer.Option(help=".params file. Default: random weights.", rich_help_panel=NETWORK_PANEL),
]
Size: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="HEIGHTxWIDTH", help="Default: the symbol's own.", rich_help_panel=NETWORK_PANEL
    ),
]
PRECISION_PANEL = "Precision"
Precision: TypeAlias = Annotated[
    str,
    typer.Option(
        help="fp32, fp16 (for GPUs) or int8 (for CPUs; calibrated on images).",
        rich_help_panel=PRECISION_PANEL,
    ),
]
Root: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder of --dataset: its train split calibrates int8, its val split measures the"
        " accuracy before and after.",
        rich_help_panel=PRECISION_PANEL,
    ),
]
Calibration: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder of photos to calibrate int8 on, instead of the dataset's; without a dataset"
        " every fifth is kept to compare labels on.",
        rich_help_panel=PRECISION_PANEL,
    ),
]
CalibrationImages: TypeAlias = Annotated[
    int, typer.Option(min=1, help="At most so many.", rich_help_panel=PRECISION_PANEL)
]
ValidationImages: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Measure the accuracy on at most so many; default: all.",
        rich_help_panel=PRECISION_PANEL,
    ),
]
MaxMiouDrop: TypeAlias = Annotated[
    float,
    typer.Option(
        min=0,
        help="Write nothing where more points of mIoU are lost than this.",
        rich_help_panel=PRECISION_PANEL,
    ),
]
MinAgreement: TypeAlias = Annotated[
    float,
    typer.Option(
        min=0,
        max=100,
        help="The same for photos without labels: the least per cent of pixels whose label stays"
        " what it is in fp32.",
        rich_help_panel=PRECISION_PANEL,
    ),
]
Search: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--search",
        help="Try calibration methods, types, 8-bit weights and layers left in float; keep the"
        " fastest int8 that passes.",
        rich_help_panel=PRECISION_PANEL,
    ),
]
Force: TypeAlias = Annotated[
    bool,
    typer.Option("--force", help="Write it whatever it loses.", rich_help_panel=PRECISION_PANEL),
]
WRITTEN_PANEL = "What is written"
Head: TypeAlias = Annotated[
    str, typer.Option(help="Outputs: of mask, logits, confidence.", rich_help_panel=WRITTEN_PANEL)
]
Repository: TypeAlias = Annotated[
    Path, typer.Option(help="Folder of models.", rich_help_panel=WRITTEN_PANEL)
]
Accuracy: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Measured accuracy and its protocol, to store with the model.",
        rich_help_panel=WRITTEN_PANEL,
    ),
]
Provenance: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Where the weights come from, to store likewise.", rich_help_panel=WRITTEN_PANEL
    ),
]
Family: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Asked for by this name, the models that share it answer, each the images it fits."
        " Default: the network's name, _DATASET after it.",
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
