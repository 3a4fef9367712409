"""The options that say which network is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from training.model_names import NETWORKS

_PANEL = "Network"

Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(NETWORKS)}.",
        rich_help_panel=_PANEL,
    ),
]
From: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="A model of --repository (or its folder) in fp32 or fp16, instead of --model: the same"
        " network once more, in another --precision.",
        rich_help_panel=_PANEL,
    ),
]
Backbone: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Default: resnet50; xception65 of deeplabv3plus, resnet101 of Caffe's DeepLabs.",
        rich_help_panel=_PANEL,
    ),
]
Width: TypeAlias = Annotated[
    float | None, typer.Option(help="Channel multiplier. Default: 1.", rich_help_panel=_PANEL)
]
Aux: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--aux/--no-aux",
        help="The network was trained with an auxiliary head; it is not served.",
        rich_help_panel=_PANEL,
    ),
]
OutputStride: TypeAlias = Annotated[
    int | None,
    typer.Option(help="8 or 16, of deeplabv3plus. Default: 16.", rich_help_panel=_PANEL),
]
Pretrained: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of GluonCV's zoo (icnet_resnet50_citys), or a folder of segserve import-weights: "
        "stands for --params, --dataset and all that names the network.",
        rich_help_panel=_PANEL,
    ),
]
Symbol: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="symbol.json, instead of --model. Default: beside --params, published, or made with"
        " MXNet.",
        rich_help_panel=_PANEL,
    ),
]
Params: TypeAlias = Annotated[
    Path | None,
    typer.Option(help=".params file. Default: random weights.", rich_help_panel=_PANEL),
]
Size: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="HEIGHTxWIDTH", help="Default: the symbol's own.", rich_help_panel=_PANEL),
]
