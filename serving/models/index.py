"""The repository index: every model of the repository, and the state of its versions.

Source: Triton's extension_model_repository.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serving.errors import SegserveError
from serving.models.model import ModelEntry
from serving.models.sources import ModelSource


@dataclass(frozen=True)
class ModelState:
    """An entry of the repository index; ``version`` and ``state`` are empty before any load."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


def build_index(source: ModelSource, entries: Mapping[str, ModelEntry]) -> list[ModelState]:
    """Returns one state a version, or a model where there are none, by name. May block.

    Args:
        source: of the repository's models.
        entries: by name; they must not change meanwhile.
    """
    known = {name for name, entry in entries.items() if entry.versions or entry.unloaded}
    return [
        ModelState(name, *state)
        for name in sorted({*source.names(), *known})
        for state in _list_states(source, name, entries.get(name, ModelEntry()))
    ]


def _list_states(source: ModelSource, name: str, entry: ModelEntry) -> list[tuple[str, str, str]]:
    """Returns version, state and reason of every version of a model."""
    if entry.newest is not None:
        states = []
        for version, model in sorted(entry.versions.items()):
            why = model.batcher.broken or ""
            states.append((str(version), "UNAVAILABLE" if why else "READY", why))
        # Folders that are not versions, and changes that failed.
        refused = {**entry.newest.folder.ignored, **entry.refused}
        return states + [(version, "UNAVAILABLE", why) for version, why in refused.items()]
    if entry.changing:
        return [("", entry.changing, "")]
    if entry.failure:
        versions = _tried_versions(source, name)
        return [(version, "UNAVAILABLE", entry.failure) for version in versions]
    if entry.unloaded:
        return [(str(v), "UNAVAILABLE", "unloaded") for v in sorted(entry.unloaded)]
    return [("", "", "")]


def _tried_versions(source: ModelSource, name: str) -> tuple[str, ...]:
    """Returns the versions of a model that failed; one empty text where they cannot be read."""
    try:
        return tuple(str(version) for version in source.read(name).versions)
    except SegserveError:
        return ("",)
