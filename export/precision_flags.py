"""The options about precision, the same for every command that writes a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

_PANEL = "Precision"

Precision: TypeAlias = Annotated[
    str,
    typer.Option(
        help="fp32, fp16 (for GPUs) or int8 (for CPUs; calibrated on images).",
        rich_help_panel=_PANEL,
    ),
]
Root: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder of --dataset: its train split calibrates int8, its val split measures the"
        " accuracy before and after.",
        rich_help_panel=_PANEL,
    ),
]
Calibration: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder of photos to calibrate int8 on, instead of the dataset's; without a dataset"
        " every fifth is kept to compare labels on.",
        rich_help_panel=_PANEL,
    ),
]
CalibrationImages: TypeAlias = Annotated[
    int, typer.Option(min=1, help="At most so many.", rich_help_panel=_PANEL)
]
ValidationImages: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Measure the accuracy on at most so many; default: all.",
        rich_help_panel=_PANEL,
    ),
]
MaxMiouDrop: TypeAlias = Annotated[
    float,
    typer.Option(
        min=0,
        help="Write nothing where more points of mIoU are lost than this.",
        rich_help_panel=_PANEL,
    ),
]
MinAgreement: TypeAlias = Annotated[
    float,
    typer.Option(
        min=0,
        max=100,
        help="The same for photos without labels: the least per cent of pixels whose label stays"
        " what it is in fp32.",
        rich_help_panel=_PANEL,
    ),
]
Search: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--search",
        help="Try calibration methods, types, 8-bit weights and layers left in float; keep the"
        " fastest int8 that passes.",
        rich_help_panel=_PANEL,
    ),
]
Force: TypeAlias = Annotated[
    bool, typer.Option("--force", help="Write it whatever it loses.", rich_help_panel=_PANEL)
]
