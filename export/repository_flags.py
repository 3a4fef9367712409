"""The options about what is written, the same for every command that writes a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from export.errors import ExportError
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
