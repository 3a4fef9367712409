"""Compares an imported model with the network it was made of, both on ONNX Runtime.

The network gets a float image that NumPy normalised, the model the same image's bytes. What the
network gives is resized and turned into labels here, in float64.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, helper
from PIL import Image

from export.errors import ExportError, InvalidLabels, VerificationFailed
from export.onnx_import.network import ImportedNetwork, ImportOptions, InputFormat
from export.onnx_import.outputs import (
    LOG_SOFTMAX,
    SIGMOID,
    SOFTMAX,
    Labels,
    Scores,
    threshold_shift,
)
from export.onnx_import.source import prepare_network
from export.verify import (
    MAX_RELATIVE_DIFFERENCE,
    MIN_LABEL_AGREEMENT,
    Verification,
    example_images,
    find_not_finite,
    telling_images,
)
from serving.engines.graph import find_precision

MIN_LABEL_AGREEMENT_COARSE = 0.99

Array = NDArray[np.float64]


def verify_import(
    path: Path, network: ModelProto, imported: ImportedNetwork, options: ImportOptions
) -> tuple[Verification, bool]:
    """Runs the ``network`` of the file ``path`` and the model on a few images.

    Returns how far they are apart, and whether a batch of all images gave what each alone did.

    Raises VerificationFailed where they differ by more than float arithmetic explains or the
    network does not give numbers, and InvalidLabels where it gives ids that no class has.
    """
    images = example_images(imported.height, imported.width)
    try:
        _check_numbers(path, network, imported, options)
        source = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = options.output or source.get_outputs()[0].name
        gray = imported.channels == 1
        shown = [normalise(image, options.input, gray=gray) for image in images]
        expected = [_run_source(source, name, values) for values in shown]
    except ExportError:
        raise
    except Exception as error:  # onnxruntime's errors have no common class of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise VerificationFailed(f"{path}: ONNX Runtime does not run it: {reason}") from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"  # a file, as protobuf messages end at 2 GiB
        file.write_bytes(imported.model.SerializeToString())
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        alone = [_run_model(session, image[None]) for image in images]
        batches = _batch_agrees(session, images, alone)
    absolute, largest, equal = None, 0.0, 0
    for wanted, given in zip(expected, alone, strict=True):
        labels, scores = _labels_and_scores(wanted, imported, options)
        if labels.max() >= options.classes:
            raise InvalidLabels(
                f"the network outputs the class {labels.max()}, but {options.classes} are named;"
                " name all of them with --classes"
            )
        equal += int((labels == _labels(given, imported)).sum())
        if scores is not None and "logits" in given:
            difference = np.abs(_as_source(given["logits"], imported, options) - scores).max()
            absolute = float(np.maximum(absolute or 0.0, difference))  # keeps NaN
            largest = max(largest, float(np.abs(scores).max()))
    relative = None if absolute is None else absolute / (largest or 1.0)
    agreement = equal / (len(images) * imported.height * imported.width)
    result = Verification(len(images), absolute, relative, agreement)
    # Where a value lies between two steps of half precision or int8, its last bit decides.
    coarse = find_precision(imported.model) != "fp32"
    least = MIN_LABEL_AGREEMENT_COARSE if coarse else MIN_LABEL_AGREEMENT
    near = coarse or result.is_within(MAX_RELATIVE_DIFFERENCE, least)
    if not near or agreement < least:
        raise VerificationFailed(
            f"the imported model and the network disagree: {result}; --no-verify writes it without"
            " the comparison"
        )
    return result, batches


def _check_numbers(
    path: Path, network: ModelProto, imported: ImportedNetwork, options: ImportOptions
) -> None:
    """Raises VerificationFailed where the network, as its file has it, does not give numbers."""
    prepared = prepare_network(network, options.output)
    kind = helper.tensor_dtype_to_np_dtype(prepared.graph.input[0].type.tensor_type.elem_type)
    shown = {
        title: normalise(image[0], options.input, gray=imported.channels == 1).astype(kind)
        for title, image in telling_images(imported.height, imported.width).items()
    }
    found = find_not_finite(prepared, shown)
    if found is not None:
        raise VerificationFailed(
            f"{path} does not give numbers: {found}; nothing was written. Are its weights those of"
            " a finished training, and --mean, --std and --range what it was trained with?"
        )


def normalise(
    image: NDArray[np.uint8], expected: InputFormat, *, gray: bool = False
) -> NDArray[np.float32]:
    """Turns uint8 [H, W, 3] RGB into the network's input, float32 with the batch's 1 in front;
    ``gray`` is that of a network of one channel."""
    pixels = image[..., ::-1] if expected.bgr and not gray else image
    mean, std = np.array(expected.mean), np.array(expected.std)
    if gray:
        pixels = np.asarray(Image.fromarray(image).convert("L"))[..., None]
        mean, std = mean[:1], std[:1]
    scaled = pixels.astype(np.float64) * (expected.maximum / 255)
    values = ((scaled - mean) / std).astype(np.float32)
    values = values if expected.channels_last else values.transpose(2, 0, 1)
    return np.ascontiguousarray(values[None])


def resize_scores(scores: Array, height: int, width: int, aligned: bool) -> Array:
    """Resizes [C, h, w] bilinearly to [C, height, width], with aligned corners or half-pixel
    centres."""
    if scores.shape[1:] == (height, width):
        return scores
    rows = _interpolation(scores.shape[1], height, aligned)
    columns = _interpolation(scores.shape[2], width, aligned)
    resized: Array = rows @ scores @ columns.T
    return resized


def _interpolation(length: int, outputs: int, aligned: bool) -> Array:
    """Returns [outputs, length]: the weights of each position."""
    index = np.arange(outputs)
    if aligned:
        positions = index * ((length - 1) / (outputs - 1) if outputs > 1 else 0.0)
    else:
        positions = np.clip((index + 0.5) * length / outputs - 0.5, 0, length - 1)
    low = np.minimum(positions.astype(int), max(length - 2, 0))
    matrix = np.zeros((outputs, length))
    np.add.at(matrix, (index, low), 1 - (positions - low))
    np.add.at(matrix, (index, np.minimum(low + 1, length - 1)), positions - low)
    return matrix


def _run_source(
    session: onnxruntime.InferenceSession, name: str, values: NDArray[np.float32]
) -> NDArray[np.generic]:
    (wanted,) = session.get_inputs()
    half = wanted.type == "tensor(float16)"
    (result,) = session.run([name], {wanted.name: values.astype(np.float16) if half else values})
    found: NDArray[np.generic] = result[0]
    return found


def _run_model(
    session: onnxruntime.InferenceSession, images: NDArray[np.uint8]
) -> dict[str, NDArray[np.generic]]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def _batch_agrees(
    session: onnxruntime.InferenceSession,
    images: NDArray[np.uint8],
    alone: list[dict[str, NDArray[np.generic]]],
) -> bool:
    try:
        together = _run_model(session, images)
    except Exception:  # the batch is written into the network
        return False
    for name, values in together.items():
        single = [result[name] for result in alone]
        if values.shape[0] != len(images) or any(len(part) != 1 for part in single):
            return False
        joined = np.concatenate(single)
        if name == "mask":
            same = float((values == joined).mean()) >= MIN_LABEL_AGREEMENT
        else:
            # A confidence of 255 steps may be rounded either way.
            whole = np.issubdtype(joined.dtype, np.integer)
            bound = 1 if whole else MAX_RELATIVE_DIFFERENCE * float(np.abs(joined).max() or 1)
            same = np.allclose(values.astype(float), joined.astype(float), rtol=0, atol=bound)
        if not same:
            return False
    return True


def _labels_and_scores(
    wanted: NDArray[np.generic], imported: ImportedNetwork, options: ImportOptions
) -> tuple[NDArray[np.int64], Array | None]:
    """Returns the network's labels at the image's size, and its scores [C, h, w] as it gives
    them."""
    found, size = imported.found, (imported.height, imported.width)
    if isinstance(found, Labels) or found.argmax:
        ids = np.asarray(wanted, np.int64).reshape(wanted.shape[-2:])
        rows, columns = (
            ((np.arange(n) + 0.5) * length / n).astype(int)
            for n, length in zip(size, ids.shape, strict=True)
        )
        return ids[rows][:, columns], None
    scores = np.asarray(wanted, np.float64)
    if scores.ndim == 2:
        scores = scores[None]
    elif scores.shape[0] != found.classes:
        scores = scores.transpose(2, 0, 1)
    full = scores
    if scores.shape[1:] != size:
        full = resize_scores(scores, *size, aligned=bool(options.aligned))
    if found.classes == 1:
        return (full[0] > (options.threshold or 0)).astype(np.int64), full
    return full.argmax(0), full


def _labels(
    given: dict[str, NDArray[np.generic]], imported: ImportedNetwork
) -> NDArray[np.generic]:
    if "mask" in given:
        return np.asarray(given["mask"][0])
    return np.asarray(_full_size(given["logits"], imported).argmax(0))


def _full_size(logits: NDArray[np.generic], imported: ImportedNetwork) -> Array:
    return resize_scores(
        np.asarray(logits[0], np.float64), imported.height, imported.width, aligned=True
    )


def _as_source(
    logits: NDArray[np.generic], imported: ImportedNetwork, options: ImportOptions
) -> Array:
    """Returns the model's logits at the image's size, through the activation that the network ends
    in."""
    found = imported.found
    assert isinstance(found, Scores), "networks that give labels have no scores to compare"
    values = _full_size(logits, imported)
    if found.classes == 1:
        values = values[1:] + threshold_shift(found, options.threshold)
    if found.activation == SIGMOID:
        return np.asarray(1 / (1 + np.exp(-values)))
    if found.activation in (SOFTMAX, LOG_SOFTMAX):
        values = values - values.max(0)
        values = values - np.log(np.exp(values).sum(0))
        return np.asarray(np.exp(values)) if found.activation == SOFTMAX else values
    return values
