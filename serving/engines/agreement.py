"""Whether an engine's answers to one picture are those of ONNX Runtime in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from serving.engine import Engine
from serving.engines.acceleration import Acceleration
from serving.engines.graph import (
    INPUT,
    LOGITS,
    cut_to,
    find_precision,
    outputs_of,
    read_graph,
    read_spec,
)
from serving.engines.onnxruntime import CPU, open_session, session_options
from serving.errors import EngineFailed, InvalidModel
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction

LEAST_AGREEMENT = 0.995
# int8 engines round differently; to float32 OpenVINO may be farther by so much than ONNX Runtime.
INT8_TOLERANCE = 0.002
# Where the picture shows one class: root mean square of the logits' difference, of their spread.
MOST_DIFFERENCE = 0.1
# A street that was drawn by ``segserve dataset synthetic``: a picture much like a photo.
_PICTURE = Path(__file__).with_name("street.jpg")


@dataclass(frozen=True)
class Verdict:
    """How OpenVINO's answers to the picture compare with ONNX Runtime's.

    Attributes:
        agreement: the part of the labels that are equal.
        accepted: whether that is enough.
        reason: a sentence for the log.
    """

    agreement: float
    accepted: bool
    reason: str


def judge(engine: Engine, path: Path, threads: int, acceleration: Acceleration) -> Verdict:
    """Compares an engine's labels of one picture with those of ONNX Runtime in float32.

    Of an int8 file the reference is its network without the roundings, and the engine may be as far
    from that as ONNX Runtime is with them.
    """
    model = read_graph(path)
    model = cut_to(path, model, outputs_of(model)[0])
    picture = read_picture(read_spec(path, model, 1, 1).size)
    try:
        found = engine.run(picture)
        if find_precision(model) == "int8":
            rounded = _run_reference(path, model, picture, threads, acceleration)
            exact = _run_reference(path, without_quantisers(model), picture, threads, acceleration)
            least = min(LEAST_AGREEMENT, agreement(rounded, exact) - INT8_TOLERANCE)
        else:
            exact = _run_reference(path, model, picture, threads, acceleration)
            least = LEAST_AGREEMENT
    except (EngineFailed, InvalidModel) as error:
        return Verdict(0.0, accepted=False, reason=f"a picture could not be compared: {error}")
    for name, prediction in (("ONNX Runtime", exact), ("OpenVINO", found)):
        if prediction.logits is not None and not np.isfinite(prediction.logits).all():
            reason = f"{name}'s answer to a picture is not finite"
            return Verdict(0.0, accepted=False, reason=reason)
    equal = agreement(found, exact)
    reason = (
        f"{100 * equal:.2f} % of a picture's labels are ONNX Runtime's in float32, "
        f"{100 * least:.2f} % are needed"
    )
    if found.logits is not None and exact.logits is not None and _shows_one_class(exact):
        spread = float(exact.logits.std()) or 1.0
        difference = float(np.sqrt(np.mean((found.logits - exact.logits) ** 2))) / spread
        if difference > MOST_DIFFERENCE:
            reason = f"logits of a picture differ by {difference:.2f} of their spread"
            return Verdict(equal, accepted=False, reason=reason)
    return Verdict(equal, accepted=equal >= least, reason=reason)


def agreement(one: Prediction, other: Prediction) -> float:
    """Returns the part of the labels that are equal, from 0 to 1."""
    return float(np.mean(_labels(one) == _labels(other)))


def read_picture(size: Size) -> npt.NDArray[np.uint8]:
    """Returns a street scene, uint8 ``[1,H,W,3]`` RGB of the network's size."""
    data = np.frombuffer(_PICTURE.read_bytes(), np.uint8)
    image = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    shrinks = size.width < image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (size.width, size.height), interpolation=how)
    return np.ascontiguousarray(resized[None])


def without_quantisers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy of a QDQ graph that passes activations on unrounded; weights stay rounded.

    They are clipped as before, for a ReLU may be no more than the end of what int8 can say.
    """
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in plain.graph.initializer}
    quantisers = {n.output[0]: n for n in plain.graph.node if n.op_type == "QuantizeLinear"}
    for node in plain.graph.node:
        quantiser = quantisers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        bounds = None if quantiser is None else _read_bounds(quantiser, constants)
        if quantiser is None or bounds is None:
            continue
        names = [f"{node.output[0]}_{end}" for end in ("least", "most")]
        plain.graph.initializer.extend(
            numpy_helper.from_array(bound, name) for bound, name in zip(bounds, names, strict=True)
        )
        node.op_type = "Clip"
        del node.attribute[:], node.input[:]
        node.input.extend([quantiser.input[0], *names])
    return plain


def _read_bounds(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]] | None:
    """The least and the largest number that a QuantizeLinear can say; None where it differs by
    channel, or is computed."""
    if len(node.input) < 3 or not {node.input[1], node.input[2]} <= set(constants):
        return None
    scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    if scale.size != 1 or zero.size != 1 or zero.dtype not in (np.uint8, np.int8):
        return None
    ends = np.iinfo(zero.dtype)
    least, most = ((end - int(zero.item())) * float(scale.item()) for end in (ends.min, ends.max))
    return np.asarray(least, scale.dtype), np.asarray(most, scale.dtype)


def _run_reference(
    path: Path,
    model: onnx.ModelProto,
    picture: npt.NDArray[np.uint8],
    threads: int,
    acceleration: Acceleration,
) -> Prediction:
    options = session_options(acceleration, 1, threads)
    session = open_session(path, model.SerializeToString(), options, [(CPU, {})])
    output = model.graph.output[0].name
    try:
        (result,) = session.run([output], {INPUT: picture})
    except Exception as error:
        raise EngineFailed(f"ONNX Runtime: {error}") from error
    return Prediction(result, None) if output == LOGITS else Prediction(None, result)


def _labels(prediction: Prediction) -> npt.NDArray[np.uint8]:
    if prediction.mask is not None:
        return prediction.mask
    assert prediction.logits is not None
    labels: npt.NDArray[np.uint8] = prediction.logits.argmax(axis=1).astype(np.uint8)
    return labels


def _shows_one_class(prediction: Prediction) -> bool:
    labels = _labels(prediction)
    return bool((labels == labels.flat[0]).all())
