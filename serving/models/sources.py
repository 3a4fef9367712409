"""The source of models: a folder here, or (``triton_source.py``) a Triton server."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from serving.errors import InvalidModel
from serving.models.repository import (
    CONFIG_FILE,
    ModelFolder,
    list_models,
    list_other_folders,
    read_model,
    show_name,
)
from serving.settings import Settings

log = logging.getLogger("segserve")


class ModelSource(Protocol):
    """A source of models by name. Calls may block: they come from threads, or before serving."""

    @property
    def title(self) -> str:
        """Returns what an error message calls it."""
        ...

    def names(self) -> list[str]:
        """Returns all models, sorted, whether they can be served or not.

        Raises:
            InvalidModel: the source does not exist.
            NotReady: it does not answer.
        """
        ...

    def read(self, name: str) -> ModelFolder:
        """Reads one model, checks it, and does not load it.

        Raises:
            InvalidModel: the message names the field.
        """
        ...

    def is_ready(self, names: Sequence[str]) -> bool:
        """Returns whether models that were loaded can be used now."""
        ...

    def close(self) -> None:
        """Frees what the source holds; engines are closed before it."""
        ...


class LocalRepository:
    """The folder ``settings.repository``."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.repository
        self._others: set[Path] = set()

    @property
    def title(self) -> str:
        return str(self.folder)

    def names(self) -> list[str]:
        names = [show_name(path) for path in list_models(self.folder)]
        for path in list_other_folders(self.folder):
            if path not in self._others:
                log.info("%s is not a model: it has no %s", ascii(str(path)), CONFIG_FILE)
                self._others.add(path)
        return names

    def read(self, name: str) -> ModelFolder:
        for path in list_models(self.folder):
            if show_name(path) == name:
                return read_model(path)
        raise InvalidModel(f"{self.folder / name} is gone")

    def is_ready(self, names: Sequence[str]) -> bool:
        return True

    def close(self) -> None:
        return
