"""The tensors of an inference: images out of the inputs, outputs out of predictions.

As an extension ``image`` may be BYTES ``[n]`` of encoded images, and ``png`` BYTES ``[n]`` may be
asked for: each mask as an indexed PNG in its own image's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from serving import mask, restore
from serving.batching.batch import Inferred
from serving.errors import InvalidRequest, UnsupportedOption
from serving.geometry import Plan, Size, View, plan
from serving.metrics import Timings
from serving.models.model import Model
from serving.oip.inference import InferRequest, OutputTensor, RequestedOutput
from serving.oip.shared_memory import SharedMemory
from serving.oip.tensors import Tensor
from serving.views.one_view import restore_labels

Item = TypeVar("Item", bound=np.generic)

INPUT = "image"
LOGITS = "logits"
CONFIDENCE = "confidence"
PNG = "png"


@dataclass(frozen=True)
class Answer:
    """One image of a request: its prediction, how the network saw it, its timings."""

    inferred: Inferred
    plan: Plan
    timings: Timings


def choose_outputs(request: InferRequest, model: Model) -> tuple[RequestedOutput, ...]:
    """What to give, each once, in the order of the model's configuration.

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


def read_images(
    inputs: tuple[Tensor, ...], model: Model
) -> tuple[bytes | npt.NDArray[np.uint8], ...]:
    """The images of a request, encoded or as pixels ``[H,W,3]``.

    Raises:
        InvalidRequest: not exactly one input ``image`` of the model's shape.
    """
    if [tensor.name for tensor in inputs] != [INPUT]:
        names = ", ".join(repr(tensor.name) for tensor in inputs) or "none"
        raise InvalidRequest(
            f"expected one input {INPUT!r} for model {model.name!r}, got {len(inputs)}: {names}"
        )
    tensor, size = inputs[0], model.spec.size
    n = tensor.shape[0] if tensor.shape else 0
    # perf_analyzer sends BYTES as [n,1].
    listed = tensor.datatype == "BYTES" and tensor.shape in ((n,), (n, 1))
    pixels = tensor.datatype == "UINT8" and tensor.shape[1:] == (size.height, size.width, 3)
    if not listed and not pixels:
        raise InvalidRequest(
            f"{INPUT!r}: {tensor.datatype} {list(tensor.shape)} does not fit model {model.name!r}; "
            f"expected UINT8 [n,{size.height},{size.width},3] (RGB) "
            f"or BYTES [n] of encoded images"
        )
    if n > model.spec.max_batch_size:
        raise InvalidRequest(
            f"inference request batch-size must be <= {model.spec.max_batch_size} "
            f"for {model.name!r}, got {n}"
        )
    return tuple(tensor.data)


def build_outputs(
    wanted: tuple[RequestedOutput, ...],
    answers: list[Answer],
    model: Model,
    memory: SharedMemory,
) -> tuple[OutputTensor, ...]:
    """The asked-for tensors, batched, in shared memory where they go. Runs on a pool thread.

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
    return Tensor(name, "UINT8", masks.shape, masks)


def _stack(arrays: list[npt.NDArray[Item]]) -> npt.NDArray[Item]:
    """One array of several; of a single one a view."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _restore(answer: Answer, view: View, target: Size) -> npt.NDArray[np.uint8]:
    with answer.timings.measure("restore"):
        return restore_labels(answer.inferred.prediction, view, target)


def _encode_png(answer: Answer, model: Model) -> bytes:
    labels = _restore(answer, answer.plan.only_view, answer.plan.original)
    with answer.timings.measure("encode"):
        known = model.labels
        view = mask.MaskView(labels, known.names, known.colors, known.ignore_label)
        return mask.encode(view, PNG).body
