"""The options about what is written, the same for every command that writes a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from export.errors import ExportError, UnsupportedPrecision
from export.passes.mask_head import LOGITS, MASK

PANEL = "What is written"

Head: TypeAlias = Annotated[
    str, typer.Option(help="Outputs: of mask, logits, confidence.", rich_help_panel=PANEL)
]
Repository: TypeAlias = Annotated[
    Path, typer.Option(help="Folder of models.", rich_help_panel=PANEL)
]
Accuracy: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Measured accuracy and its protocol, to store with the model.", rich_help_panel=PANEL
    ),
]
Provenance: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Where the weights come from, to store likewise.", rich_help_panel=PANEL),
]
Family: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Asked for by this name, the models that share it answer, each the images it fits."
        " Default: the network's name, _DATASET after it.",
        rich_help_panel=PANEL,
    ),
]
DEFAULT_HEAD = "mask,logits"
DEFAULT_REPOSITORY = Path("model_repository")


def family_name(network: str, dataset: str | None) -> str:
    """No model's own name where there is a dataset: a model's name always means that model."""
    return f"{network}_{dataset}" if dataset else network


def split_head(text: str) -> tuple[str, ...]:
    """The outputs that ``--head`` names.

    Raises ExportError where no server could make labels of them.
    """
    heads = tuple(part.strip() for part in text.split(",") if part.strip())
    if not set(heads) & {MASK, LOGITS}:
        raise ExportError(
            f"--head {text!r} holds neither mask nor logits; a server needs one of them: add mask"
        )
    return heads


def check_format(file_format: str, precision: str, opset: int | None) -> None:
    """Raises ExportError for an unknown ``--format``, or options that it leaves no room for."""
    if file_format not in ("onnx", "mxnet"):
        raise ExportError(f"there is no --format {file_format}; choose onnx or mxnet")
    if file_format == "mxnet" and precision != "fp32":
        raise UnsupportedPrecision(f"--format mxnet is fp32; for {precision} use --format onnx")
    if file_format == "mxnet" and opset is not None:
        raise ExportError(f"--opset {opset} is for --format onnx; leave one of the two out")


def summary(
    folder: Path,
    file: str,
    classes: int,
    size: tuple[int, int],
    precision: str,
    heads: Sequence[str],
) -> str:
    """What was written, for the terminal: the file, the version and what is in it."""
    return (
        f"{folder}/{file}: {folder.parent.name} version {folder.name}, {classes} classes,"
        f" {size[0]}x{size[1]}, {precision}, {','.join(heads)}"
    )
