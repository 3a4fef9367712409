"""What clients rely on: metadata that is true, and that versions of a model do not change it."""

from __future__ import annotations

import logging
from dataclasses import replace

from serving.engine import EngineSpec
from serving.errors import InvalidModel
from serving.repository import CONFIG_FILE, ModelConfig, ModelFolder

log = logging.getLogger("segserve")

LOGITS = "logits"
CONFIDENCE = "confidence"


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


def keep_given_outputs(folder: ModelFolder, version: int, spec: EngineSpec) -> ModelFolder:
    """Returns the folder with the outputs that the graph gives, which clients are shown.

    A graph without logits gives neither these nor a confidence.

    Raises:
        InvalidModel: none is left.
    """
    outputs = folder.config.output
    missing = [tensor.name for tensor in outputs if tensor.name in (LOGITS, CONFIDENCE)]
    if spec.logits_size is not None or not missing:
        return folder
    log.warning(
        "%s: the graph of version %d has no logits, so clients are not shown: %s",
        folder.path / CONFIG_FILE, version, ", ".join(missing),
    )  # fmt: skip
    kept = [tensor for tensor in outputs if tensor.name not in missing]
    if not kept:
        raise InvalidModel(
            f"{folder.path / CONFIG_FILE}: the graph of version {version} gives mask, not "
            f"{', '.join(missing)}; write the output that it gives"
        )
    config = ModelConfig()
    config.CopyFrom(folder.config)
    del config.output[:]
    config.output.extend(kept)
    return replace(folder, config=config)


def check_graph(folder: ModelFolder, version: int, spec: EngineSpec) -> None:
    """Compares the configuration, which clients are shown, with the graph that is served.

    Raises:
        InvalidModel: they contradict each other; the message names the tensor.
    """
    size, logits = spec.size, spec.logits_size
    pixels = (size.height, size.width)
    served = {"image": (*pixels, 3), "mask": pixels, CONFIDENCE: pixels}
    if logits is not None:
        served[LOGITS] = (spec.num_classes, logits.height, logits.width)
    for tensor in (*folder.config.input, *folder.config.output):
        shape = served[tensor.name]
        # Without max_batch_size dims are whole shapes.
        dims = tuple(tensor.dims)[0 if folder.config.max_batch_size > 0 else 1 :]
        if dims != shape:
            raise InvalidModel(
                f"{folder.path / CONFIG_FILE}: {tensor.name} has dims {list(dims)}, the graph of "
                f"version {version} {list(shape)}; write what the graph has"
            )
    if spec.num_classes not in (0, len(folder.labels.names)):
        raise InvalidModel(
            f"{folder.graph(version)}: {spec.num_classes} channels of logits, "
            f"{len(folder.labels.names)} names in labels.txt"
        )


def _logits(spec: EngineSpec) -> str:
    return f"{spec.num_classes} x {spec.logits_size}" if spec.logits_size else "none"


def _tensors(folder: ModelFolder, side: str) -> tuple[tuple[str, int, tuple[int, ...]], ...]:
    tensors = folder.config.input if side == "input" else folder.config.output
    return tuple((tensor.name, tensor.data_type, tuple(tensor.dims)) for tensor in tensors)
