"""Where models come from: a folder here, or (``triton.py``) a Triton server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from serving.repository import ModelFolder, list_models, read_model
from serving.settings import Settings


class ModelSource(Protocol):
    """Models by name. Calls may block: they come from threads, or before serving."""

    @property
    def title(self) -> str:
        """What an error message calls it."""
        ...

    def names(self) -> list[str]:
        """All models, sorted, whether they can be served or not.

        Raises:
            InvalidModel: the source is not there.
            NotReady: it does not answer.
        """
        ...

    def read(self, name: str) -> ModelFolder:
        """One model, checked, not loaded.

        Raises:
            InvalidModel: the message names the field.
        """
        ...

    def is_ready(self, names: Sequence[str]) -> bool:
        """Whether models that were loaded can be used now."""
        ...

    def close(self) -> None:
        """Frees what the source holds; engines are closed before it."""
        ...


class LocalRepository:
    """The folder ``settings.repository``."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.repository

    @property
    def title(self) -> str:
        return str(self.folder)

    def names(self) -> list[str]:
        return [path.name for path in list_models(self.folder)]

    def read(self, name: str) -> ModelFolder:
        return read_model(self.folder / name)

    def is_ready(self, names: Sequence[str]) -> bool:
        return True

    def close(self) -> None:
        return
