"""The repository index: every model of the repository, and the state of its versions.

Source: Triton's extension_model_repository.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from serving.errors import SegserveError
from serving.models.sources import ModelSource


@dataclass(frozen=True)
class ModelState:
    """One entry of the repository index; ``version`` and ``state`` are empty before any load."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


def build_index(
    source: ModelSource,
    loaded: Mapping[str, Mapping[int, str]],
    changing: Mapping[str, str],
    failures: Mapping[str, str],
    unloaded: Mapping[str, Iterable[int]],
    refused: Mapping[str, Mapping[str, str]],
) -> list[ModelState]:
    """One entry a version, or a model where there are none, by name.

    Args:
        source: of the repository's models.
        loaded: versions that answer, each with an empty text, or why its engine does not.
        changing: ``LOADING`` or ``UNLOADING``.
        failures: why a model could not be loaded.
        unloaded: versions that a client had unloaded.
        refused: versions of loaded models that could not replace one, and why; an empty version
            is the folder itself.
    """
    states: list[ModelState] = []
    for name in sorted({*source.names(), *loaded, *unloaded}):
        if name in loaded:
            states += [
                ModelState(name, str(v), "UNAVAILABLE" if why else "READY", why)
                for v, why in sorted(loaded[name].items())
            ]
            states += [
                ModelState(name, v, "UNAVAILABLE", why) for v, why in refused.get(name, {}).items()
            ]
        elif name in changing:
            states.append(ModelState(name, state=changing[name]))
        elif name in failures:
            reason = failures[name]
            versions = _tried_versions(source, name)
            states += [ModelState(name, v, "UNAVAILABLE", reason) for v in versions]
        elif name in unloaded:
            versions = tuple(str(v) for v in sorted(unloaded[name]))
            states += [ModelState(name, v, "UNAVAILABLE", "unloaded") for v in versions]
        else:
            states.append(ModelState(name))
    return states


def _tried_versions(source: ModelSource, name: str) -> tuple[str, ...]:
    """Versions that a model that failed has; one empty string where they cannot be told."""
    try:
        return tuple(str(version) for version in source.read(name).versions)
    except SegserveError:
        return ("",)
