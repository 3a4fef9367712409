"""Which engine runs a model on CPUs, and in which precision: ``cpu_engine``.

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
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import onnxruntime

from serving.engine import Engine
from serving.engines.acceleration import AUTO, ONNXRUNTIME, OPENVINO, Acceleration
from serving.engines.agreement import LEAST_AGREEMENT, Verdict, judge
from serving.engines.graph import cut_to, find_precision, outputs_of, read_graph
from serving.engines.onnxruntime import OnnxEngine
from serving.engines.openvino import BF16, FP16, FP32, OpenVinoEngine, run_precision
from serving.errors import InvalidModel

log = logging.getLogger("segserve")

INT8 = "int8"
BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})
AMX_INT8 = "amx_int8"
_PROCESSOR = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Processor:
    """What the engines' speed depends on."""

    name: str
    flags: frozenset[str]

    @property
    def multiplies_bf16(self) -> bool:
        return bool(self.flags & BF16_FLAGS)

    @property
    def feature(self) -> str:
        """The instructions that the rule is about, by their makers' names."""
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
    """What a model is to be run by, before anything is opened.

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
    """The engine of a model on this machine's CPUs.

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


# Found again where an engine that broke is opened anew, also where nothing can be written.
_VERDICTS: dict[str, Verdict] = {}


def _judge_kept(
    engine: OpenVinoEngine, path: Path, threads: int, acceleration: Acceleration, precision: str
) -> Verdict:
    """As :func:`judge`, once for a graph on a machine: what came of it is kept beside it."""
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
    """Of the graph that is served."""
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
