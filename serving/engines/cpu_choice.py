"""Chooses the engine that runs a model on CPUs, and its precision (setting ``cpu_engine``).

What is chosen by itself (``auto``) follows a rule that was measured (docs/engines.md), and only
where OpenVINO's answers to one picture agree with ONNX Runtime's:

- fp32 and fp16 files, on processors that multiply bf16: OpenVINO in bf16;
- int8 files, on processors with AMX: OpenVINO;
- everything else: ONNX Runtime.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

from serving.engine import Engine
from serving.engines.acceleration import AUTO, ONNXRUNTIME, OPENVINO, Acceleration
from serving.engines.graph import (
    INPUT,
    LOGITS,
    cut_to,
    find_precision,
    outputs_of,
    read_graph,
    read_spec,
)
from serving.engines.onnxruntime import CPU, OnnxEngine, open_session, session_options
from serving.engines.openvino import BF16, FP16, FP32, OpenVinoEngine, run_precision
from serving.errors import EngineFailed, InvalidModel
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction
from serving.palette import LabelMap

log = logging.getLogger("segserve")

INT8 = "int8"
BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})
AMX_INT8 = "amx_int8"
_PROCESSOR = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Processor:
    """The features of a processor that the engines' speed depends on."""

    name: str
    flags: frozenset[str]

    @property
    def multiplies_bf16(self) -> bool:
        return bool(self.flags & BF16_FLAGS)

    @property
    def feature(self) -> str:
        """Returns the instructions that the rule is about, by their makers' names."""
        names = {"amx_bf16": "AMX", AMX_INT8: "AMX", "avx512_bf16": "AVX512-BF16"}
        return next((names[flag] for flag in names if flag in self.flags), "")


@cache
def read_processor() -> Processor:
    """Returns what Linux says of the first processor; nothing elsewhere."""
    try:
        text = _PROCESSOR.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Processor("", frozenset())
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    facts = {key.strip(): value.strip() for key, _, value in lines}
    return Processor(facts.get("model name", ""), frozenset(facts.get("flags", "").split()))


@dataclass(frozen=True)
class Choice:
    """The engine and the precision that a model is to run with, before anything is opened.

    Attributes:
        engine: ``onnxruntime`` or ``openvino``.
        precision: what floating-point operators compute in, where that is OpenVINO.
        compared: whether its answers are to be compared with ONNX Runtime's first.
        asked: whether somebody says so; else it is this module's rule.
    """

    engine: str
    precision: str = FP32
    compared: bool = False
    asked: bool = False


def choose_engine(
    precision: str, acceleration: Acceleration, cpu_engine: str, processor: Processor
) -> Choice:
    """Returns what to open a model with: what is asked for, else by the rule.

    Args:
        precision: of the file: ``fp32``, ``fp16`` or ``int8``.
        cpu_engine: the setting; ``auto`` leaves it to the model's configuration.
    """
    wanted = acceleration.cpu_engine if cpu_engine == AUTO else cpu_engine
    options = acceleration.openvino
    if wanted == ONNXRUNTIME:
        return Choice(ONNXRUNTIME, asked=True)
    if wanted == OPENVINO:
        if options.precision != AUTO:
            return Choice(OPENVINO, options.precision, asked=True)
        # Graphics compute in float16 by themselves.
        fastest = FP16 if options.device != "CPU" else BF16 if processor.multiplies_bf16 else FP32
        if precision == INT8 and AMX_INT8 not in processor.flags:
            fastest = FP32  # Little is left to it, and rounding that has to be paid for.
        return Choice(OPENVINO, fastest, compared=fastest != FP32, asked=True)
    fast = AMX_INT8 in processor.flags if precision == INT8 else processor.multiplies_bf16
    return Choice(OPENVINO, BF16, compared=True) if fast else Choice(ONNXRUNTIME)


def describe_choice(precision: str, acceleration: Acceleration) -> tuple[str, str]:
    """Returns the engine that this machine's CPUs would run a file of ``precision`` with, and the
    precision of its runs; nothing is opened or compared for it."""
    choice = choose_engine(precision, acceleration, AUTO, read_processor())
    if choice.engine == ONNXRUNTIME or not (choice.asked or has_openvino()):
        return ONNXRUNTIME, precision
    return OPENVINO, run_precision(precision, choice.precision)


def has_openvino() -> bool:
    """Returns whether the package is there; it is not imported."""
    return importlib.util.find_spec("openvino") is not None


def open_cpu_engine(
    path: Path,
    title: str,
    *,
    cpu_engine: str,
    instances: int,
    threads: int,
    max_batch_size: int,
    acceleration: Acceleration,
) -> Engine:
    """Returns the engine of a model on this machine's CPUs.

    Args:
        path: the ``model.onnx``.
        title: the model, in the log.
        cpu_engine: the setting; ``auto`` leaves it to the model's configuration.
        threads: cores to share out among the instances.

    Raises:
        InvalidModel: the graph cannot be served, or not by the engine that is asked for.
    """
    processor = read_processor()

    def open_onnx() -> Engine:
        return OnnxEngine(
            path, instances=instances, threads=threads, max_batch_size=max_batch_size,
            acceleration=acceleration,
        )  # fmt: skip

    def open_vino(precision: str) -> OpenVinoEngine:
        return OpenVinoEngine(
            path, instances=instances, threads=threads, max_batch_size=max_batch_size,
            acceleration=acceleration, precision=precision,
        )  # fmt: skip

    if OPENVINO not in (cpu_engine, acceleration.cpu_engine) and not processor.feature:
        return open_onnx()  # The rule need not read the file to say so.
    choice = choose_engine(_read_precision(path), acceleration, cpu_engine, processor)
    if choice.engine == ONNXRUNTIME:
        return open_onnx()
    if not choice.asked and not has_openvino():
        _hint(processor)
        return open_onnx()
    why = "it is asked for" if choice.asked else f"this processor has {processor.feature}"
    try:
        engine = open_vino(choice.precision)
    except InvalidModel as error:
        if choice.asked:
            raise
        log.warning("%s runs on ONNX Runtime: %s", title, error)
        return open_onnx()
    if choice.compared:
        verdict = _judge_kept(engine, path, threads, acceleration, choice.precision)
        if not verdict.accepted:
            engine.close()
            other = "OpenVINO in fp32" if choice.asked else "ONNX Runtime"
            log.warning(
                "%s runs on %s: in %s of OpenVINO %s",
                title, other, choice.precision, verdict.reason,
            )  # fmt: skip
            return open_vino(FP32) if choice.asked else open_onnx()
        why = f"{why}; {verdict.reason}"
    log.info("%s runs on OpenVINO in %s: %s", title, engine.spec.precision, why)
    return engine


# Found again where an engine that broke is opened again, also where nothing can be written.
_VERDICTS: dict[str, Verdict] = {}


def _judge_kept(
    engine: OpenVinoEngine, path: Path, threads: int, acceleration: Acceleration, precision: str
) -> Verdict:
    """Returns :func:`judge`'s verdict, which is made once for a graph on a machine and then
    kept."""
    processor = read_processor()
    facts = (engine.digest, engine.version, onnxruntime.__version__, engine.name, precision,
             processor.name, *sorted(processor.flags), LEAST_AGREEMENT)  # fmt: skip
    key = sha256(repr(facts).encode()).hexdigest()[:32]
    file = None if engine.cache is None else engine.cache / f"{key}.json"
    verdict = _VERDICTS.get(key) or _read_verdict(file)
    if verdict is None:
        verdict = judge(engine, path, threads, acceleration)
        if file is not None:
            try:
                file.write_text(json.dumps(asdict(verdict)), encoding="utf-8")
            except OSError as error:
                log.debug("%s: %s", file, error)
    _VERDICTS[key] = verdict
    return verdict


def _read_verdict(file: Path | None) -> Verdict | None:
    if file is None:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Verdict(float(found["agreement"]), bool(found["accepted"]), str(found["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_precision(path: Path) -> str:
    """Returns the precision of the graph that is served."""
    model = read_graph(path)
    return find_precision(cut_to(path, model, outputs_of(model)[0]))


@cache
def _hint(processor: Processor) -> None:
    """Says once what is missing."""
    log.info(
        "this processor has %s: with OpenVINO (pip install 'segserve[openvino]') networks take a "
        "half of their time or less (docs/engines.md)",
        processor.feature,
    )


LEAST_AGREEMENT = 0.995
# int8 engines round differently; to float32 OpenVINO may be farther by so much than ONNX Runtime.
INT8_TOLERANCE = 0.002
# Where the picture shows one class: root mean square of the logits' difference, of their spread.
MOST_DIFFERENCE = 0.1
# A street that was drawn by ``segserve dataset synthetic``: a picture much like a photo.
_PICTURE = Path(__file__).with_name("street.jpg")


@dataclass(frozen=True)
class Verdict:
    """The comparison of OpenVINO's answers to the picture with ONNX Runtime's.

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
    """Returns the least and the largest number that a QuantizeLinear can say; None where it differs
    by channel, or is computed."""
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


def _labels(prediction: Prediction) -> LabelMap:
    if prediction.mask is not None:
        return prediction.mask
    assert prediction.logits is not None
    labels: LabelMap = prediction.logits.argmax(axis=1).astype(np.uint16)
    return labels


def _shows_one_class(prediction: Prediction) -> bool:
    labels = _labels(prediction)
    return bool((labels == labels.flat[0]).all())
