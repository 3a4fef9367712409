"""``segserve models``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from serving.errors import InvalidModel, SegserveError
from serving.lifecycle import open_onnx_engine
from serving.repository import list_models, read_model
from serving.settings import Settings


def models(
    repository: Annotated[Path, typer.Option(help="folder of models")] = Path("model_repository"),
) -> None:
    """List the models of a repository: what would be served, and why something would not."""
    table = Table("model", "version", "input", "precision", "classes", "accuracy")
    refused = 0
    try:
        folders = list_models(repository)
    except InvalidModel as error:
        sys.exit(f"segserve models: {error}")
    for path in folders:
        try:
            folder = read_model(path)
            accuracy = folder.config.parameters["accuracy"].string_value
            for version in folder.versions:
                engine = open_onnx_engine(folder, version, Settings())
                table.add_row(
                    folder.name,
                    str(version),
                    str(engine.spec.size),
                    engine.spec.precision,
                    str(len(folder.labels.names)),
                    accuracy,
                )
                engine.close()
        except SegserveError as error:
            refused += 1
            table.add_row(f"[red]{path.name}[/red]", "", "", "", "", f"[red]{error}[/red]")
    Console().print(table)
    if refused:
        sys.exit(1)
