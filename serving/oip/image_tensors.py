"""The tensors of an inference: images out of the inputs, outputs out of predictions.

As an extension ``image`` may be BYTES ``[n]`` of encoded images, and ``png`` BYTES ``[n]`` may be
asked for: each mask as an indexed PNG in its own image's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from serving.batching.queue import Inferred
from serving.errors import InvalidRequest, UnsupportedOption
from serving.formats import registry as mask
from serving.imaging import restore
from serving.imaging.geometry import Plan, Size, View, plan
from serving.imaging.restore import restore_labels
from serving.models.model import Model
from serving.observability.request_context import Timings
from serving.oip.messages import InferRequest, OutputTensor, RequestedOutput
from serving.oip.shared_memory import SharedMemory
from serving.oip.tensors import Tensor
from serving.palette import LabelMap

Item = TypeVar("Item", bound=np.generic)

INPUT = "image"
LOGITS = "logits"
CONFIDENCE = "confidence"
PNG = "png"
# In an error message.
MAX_NAMES = 8


@dataclass(frozen=True)
class Answer:
    """One image of a request: its prediction, how the network saw it, its timings."""

    inferred: Inferred
    plan: Plan
    timings: Timings


def choose_outputs(request: InferRequest, model: Model) -> tuple[RequestedOutput, ...]:
    """Returns what to give, each once, in the order of the model's configuration.

    Raises:
        InvalidRequest: an unknown output.
        UnsupportedOption: one that this model cannot give; the message names the remedy.
    """
    own = tuple(output.name for output in model.folder.config.output)
    known = (*own, PNG)
    asked = {output.name: output for output in request.outputs}
    if not asked:
        asked = {name: RequestedOutput(name, request.binary) for name in own}
    for name in asked:
        if name in (LOGITS, CONFIDENCE) and model.spec.logits_size is None:
            raise UnsupportedOption(
                f"{name} needs the model's logits, which {model.name!r} does not give; "
                f"export it with `segserve export --head mask,logits`"
            )
        if name not in known:
            raise InvalidRequest(
                f"unexpected inference output {name!r} for model {model.name!r}; "
                f"known: {', '.join(known)}"
            )
    return tuple(asked[name] for name in known if name in asked)


def check_input_names(names: Sequence[str], model: Model) -> None:
    """Raises InvalidRequest unless the inputs are exactly one, called ``image``."""
    if list(names) != [INPUT]:
        found = ", ".join(repr(name) for name in names[:MAX_NAMES]) or "none"
        more = ", ..." if len(names) > MAX_NAMES else ""
        raise InvalidRequest(
            f"expected one input {INPUT!r} for model {model.name!r}, got {len(names)}: "
            f"{found}{more}"
        )


def check_input(name: str, datatype: str, shape: tuple[int, ...], model: Model) -> None:
    """Checks an input against the model before any of its data is read.

    Raises:
        InvalidRequest: another datatype or shape than the model's, or too many images.
    """
    size = model.spec.size
    n = shape[0] if shape else 0
    # perf_analyzer sends BYTES as [n,1].
    listed = datatype == "BYTES" and shape in ((n,), (n, 1))
    pixels = datatype == "UINT8" and shape[1:] == (size.height, size.width, 3)
    if not listed and not pixels:
        raise InvalidRequest(
            f"{name!r}: {datatype} {list(shape)} does not fit model {model.name!r}; "
            f"expected UINT8 [n,{size.height},{size.width},3] (RGB) "
            f"or BYTES [n] of encoded images"
        )
    if n < 1:
        raise InvalidRequest(f"input {name!r}: shape {list(shape)} has an empty dimension")
    if n > model.spec.max_batch_size:
        raise InvalidRequest(
            f"inference request batch-size must be <= {model.spec.max_batch_size} "
            f"for {model.name!r}, got {n}"
        )


def read_images(
    inputs: tuple[Tensor, ...], model: Model
) -> tuple[bytes | npt.NDArray[np.uint8], ...]:
    """Returns the images of a request, encoded or as pixels ``[H,W,3]``.

    Raises:
        InvalidRequest: not exactly one input ``image`` of the model's shape.
    """
    check_input_names([tensor.name for tensor in inputs], model)
    check_input(INPUT, inputs[0].datatype, inputs[0].shape, model)
    return tuple(inputs[0].data)


def build_outputs(
    wanted: tuple[RequestedOutput, ...],
    answers: list[Answer],
    model: Model,
    memory: SharedMemory,
) -> tuple[OutputTensor, ...]:
    """Returns the asked-for tensors, batched, in shared memory where they go. Runs on a pool
    thread.

    Raises:
        InvalidRequest: one does not fit its shared memory.
    """
    built = []
    for output in wanted:
        tensor = _build_output(output.name, answers, model)
        if output.place is not None:
            memory.write(output.place, tensor.to_buffer())
        built.append(OutputTensor(output, tensor))
    return tuple(built)


def _build_output(name: str, answers: list[Answer], model: Model) -> Tensor:
    if name == PNG:
        files = tuple(_encode_png(answer, model) for answer in answers)
        return Tensor(PNG, "BYTES", (len(files),), files)
    size = model.spec.size
    # choose_outputs has made sure that they are there where they are asked for.
    logits = [m for a in answers if (m := a.inferred.prediction.logits) is not None]
    if name == LOGITS:
        stacked = _stack(logits)
        return Tensor(name, "FP32", stacked.shape, stacked)
    if name == CONFIDENCE:
        certain = _stack([restore.confidence_from_logits(m, size, size) for m in logits])
        return Tensor(name, "UINT8", certain.shape, certain)
    input_view = plan(size, size).only_view
    masks = _stack([_restore(answer, input_view, size) for answer in answers])
    return Tensor(name, masks.dtype.name.upper(), masks.shape, masks)


def _stack(arrays: list[npt.NDArray[Item]]) -> npt.NDArray[Item]:
    """Returns one array of several; of a single one a view."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _restore(answer: Answer, view: View, target: Size) -> LabelMap:
    with answer.timings.measure("restore"):
        return restore_labels(answer.inferred.prediction, view, target)


def _encode_png(answer: Answer, model: Model) -> bytes:
    labels = _restore(answer, answer.plan.only_view, answer.plan.original)
    with answer.timings.measure("encode"):
        known = model.labels
        view = mask.MaskView(labels, known.names, known.colors, known.ignore_label)
        return mask.encode(view, PNG).body
