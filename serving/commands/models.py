"""``segserve models``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serving.errors import InvalidModel
from serving.models.embedded import open_onnx_engine
from serving.models.loader import check_graph, keep_available_outputs
from serving.models.repository import (
    CONFIG_FILE,
    list_models,
    list_other_folders,
    read_model,
    show_name,
)
from serving.settings import Settings


def models(
    repository: Annotated[Path, typer.Option(help="model repository: a folder of models")] = Path(
        "model_repository"
    ),
) -> None:
    """List the models of a repository: what would be served, and why something would not."""
    table = Table("model", "version", "family", "input", "precision", "classes")
    notes: list[str] = []
    refused = 0
    try:
        folders = list_models(repository)
        others = list_other_folders(repository)
    except InvalidModel as error:
        sys.exit(f"segserve models: {error}")
    names = {path.name for path in folders}
    for path in folders:
        try:
            folder = read_model(path)
            accuracy = folder.config.parameters["accuracy"].string_value
            for version in folder.versions:
                engine = open_onnx_engine(folder, version, Settings())
                table.add_row(
                    folder.name,
                    str(version),
                    # A family that is named like a model cannot be asked for (docs/geometry.md).
                    "" if folder.family in names else folder.family,
                    str(engine.spec.size),
                    engine.spec.precision,
                    str(len(folder.labels.names)),
                )
                engine.close()
                # The row shows what the graph is, where the configuration contradicts it too.
                check_graph(
                    keep_available_outputs(folder, version, engine.spec), version, engine.spec
                )
            notes += [f"[yellow]{escape(why)}[/yellow]" for why in folder.ignored.values()]
            if accuracy:
                notes.append(escape(f"{folder.name}: {accuracy}"))
        except Exception as error:  # Whatever is wrong with one, the others are listed.
            refused += 1
            notes.append(
                f"[red]{escape(show_name(path))} is not served: {escape(str(error))}[/red]"
            )
    notes += [
        f"{escape(ascii(str(path)))} is not a model: expected a {CONFIG_FILE} in it"
        for path in others
    ]
    console = Console()
    console.print(table)
    # Whole sentences: a column of them would be a word wide.
    for note in notes:
        console.print(note, soft_wrap=True)
    if refused:
        sys.exit(1)
