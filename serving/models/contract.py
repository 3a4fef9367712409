"""What may not change between versions of a model that is served: clients rely on it."""

from __future__ import annotations

from serving.engine import EngineSpec
from serving.errors import InvalidModel
from serving.repository import ModelFolder


def check_contract(
    folder: ModelFolder, version: int, spec: EngineSpec, old: ModelFolder, old_spec: EngineSpec
) -> None:
    """Compares a version that is to be served with one that is.

    Raises:
        InvalidModel: inputs, outputs, classes or palette differ; the message names them.
    """
    facts = (
        ("image", spec.size, old_spec.size),
        ("logits", _logits(spec), _logits(old_spec)),
        ("inputs", _tensors(folder, "input"), _tensors(old, "input")),
        ("outputs", _tensors(folder, "output"), _tensors(old, "output")),
        ("classes", folder.labels.names, old.labels.names),
        ("palette", folder.labels.colors, old.labels.colors),
        ("ignore_label", folder.labels.ignore_label, old.labels.ignore_label),
    )
    for name, new, known in facts:
        if new != known:
            raise InvalidModel(
                f"{folder.path}: version {version} has other {name} than what is served: "
                f"{new} instead of {known}; unload the model first, or give it another name"
            )


def _logits(spec: EngineSpec) -> str:
    return f"{spec.num_classes} x {spec.logits_size}" if spec.logits_size else "none"


def _tensors(folder: ModelFolder, side: str) -> tuple[tuple[str, int, tuple[int, ...]], ...]:
    tensors = folder.config.input if side == "input" else folder.config.output
    return tuple((tensor.name, tensor.data_type, tuple(tensor.dims)) for tensor in tensors)
