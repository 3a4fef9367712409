"""Which engine CPUs take by themselves, and what is compared before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from serving.engine import Engine, EngineSpec
from serving.engines import cpu_choice
from serving.engines.acceleration import Acceleration, OpenVinoOptions
from serving.engines.cpu_choice import (
    Choice,
    Processor,
    Verdict,
    choose_engine,
    describe_choice,
    judge,
    open_cpu_engine,
    read_picture,
    read_processor,
    without_quantisers,
)
from serving.engines.onnxruntime import OnnxEngine
from serving.engines.openvino import OpenVinoEngine
from serving.errors import InvalidModel
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction
from tests.support.contract_graph import make_graph
from tests.support.engine_parity import needs_openvino

SHIPPED = Path(__file__).parents[3] / "model_repository" / "icnet" / "1" / "model.onnx"
AMX = Processor("Xeon", frozenset({"amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni"}))
ZEN4 = Processor("EPYC", frozenset({"avx512_bf16", "avx512_vnni"}))
OLD = Processor("Core", frozenset({"avx2"}))
ON_OPENVINO = Acceleration(cpu_engine="openvino")
BF16 = Choice("openvino", "bf16", compared=True)
ONNX = Choice("onnxruntime")


@pytest.mark.parametrize(
    ("processor", "fp32", "fp16", "int8"),
    [(AMX, BF16, BF16, BF16), (ZEN4, BF16, BF16, ONNX), (OLD, ONNX, ONNX, ONNX)],
    ids=["AMX", "AVX512-BF16", "neither"],
)
def test_the_rule(processor: Processor, fp32: Choice, fp16: Choice, int8: Choice) -> None:
    for precision, expected in (("fp32", fp32), ("fp16", fp16), ("int8", int8)):
        assert choose_engine(precision, Acceleration(), "auto", processor) == expected


def test_what_is_said_goes_before_the_rule() -> None:
    on_onnx = Acceleration(cpu_engine="onnxruntime")
    assert choose_engine("fp32", on_onnx, "auto", AMX).engine == "onnxruntime"
    asked = choose_engine("fp32", ON_OPENVINO, "auto", OLD)
    assert asked == Choice("openvino", "fp32", asked=True)
    # The setting goes before the models' configurations.
    assert choose_engine("fp32", ON_OPENVINO, "onnxruntime", AMX).engine == "onnxruntime"
    assert choose_engine("fp32", on_onnx, "openvino", OLD).engine == "openvino"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_precision_that_is_said_is_not_compared(precision: str) -> None:
    said = Acceleration(cpu_engine="openvino", openvino=OpenVinoOptions(precision=precision))
    for processor in (AMX, ZEN4, OLD):
        expected = Choice("openvino", precision, asked=True)
        assert choose_engine("fp32", said, "auto", processor) == expected


def test_an_int8_file_has_its_floats_narrowed_where_that_is_fast() -> None:
    assert choose_engine("int8", ON_OPENVINO, "auto", AMX).precision == "bf16"
    assert choose_engine("int8", ON_OPENVINO, "auto", ZEN4).precision == "fp32"


def test_the_processor_is_read_as_linux_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nmodel name\t: Some CPU: fast\nflags\t\t: sse amx_bf16 amx_int8\n\n"
        "processor\t: 1\nmodel name\t: Another\nflags\t\t: sse\n"
    )
    monkeypatch.setattr(cpu_choice, "_PROCESSOR", file)
    read_processor.cache_clear()
    try:
        found = read_processor()
        assert found == Processor("Some CPU: fast", frozenset({"sse", "amx_bf16", "amx_int8"}))
        assert found.feature == "AMX"
        read_processor.cache_clear()
        monkeypatch.setattr(cpu_choice, "_PROCESSOR", tmp_path / "absent")
        assert read_processor() == Processor("", frozenset())
    finally:
        read_processor.cache_clear()


@pytest.fixture
def open_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Opens a small graph as on a machine with a processor."""
    monkeypatch.setenv("SEGSERVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_choice, "_VERDICTS", {})
    onnx.save(make_graph(), str(tmp_path / "model.onnx"))

    def open_on(
        processor: Processor,
        cpu_engine: str = "auto",
        acceleration: Acceleration = Acceleration(),  # noqa: B008
    ) -> Engine:
        monkeypatch.setattr(cpu_choice, "read_processor", lambda: processor)
        return open_cpu_engine(
            tmp_path / "model.onnx", "model small", cpu_engine=cpu_engine, instances=1, threads=1,
            max_batch_size=2, acceleration=acceleration,
        )  # fmt: skip

    return open_on


def stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opens OpenVINO in fp32 whatever is chosen: this machine may not have the other."""

    class InFloat32(OpenVinoEngine):
        def __init__(self, path: Path, **options: object) -> None:
            super().__init__(path, **{**options, "precision": "fp32"})  # type: ignore[arg-type]  # by name

    monkeypatch.setattr(cpu_choice, "OpenVinoEngine", InFloat32)


@needs_openvino
def test_the_faster_engine_is_taken_where_it_agrees(
    open_on: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stay_in_float32(monkeypatch)
    with caplog.at_level(logging.INFO, "segserve"):
        assert open_on(AMX).name == "openvino-cpu"
    assert "model small runs on OpenVINO in fp32: this processor has AMX; 100.00 %" in caplog.text
    # Without such instructions nothing changes, and nothing is said.
    caplog.clear()
    assert open_on(OLD).name == "onnxruntime-cpu"
    assert open_on(AMX, "onnxruntime").name == "onnxruntime-cpu"
    assert caplog.text == ""


@needs_openvino
def test_answers_that_differ_too_much_are_onnx_runtimes(
    open_on: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stay_in_float32(monkeypatch)
    verdict = Verdict(0.9, accepted=False, reason="90 % are equal")
    monkeypatch.setattr(cpu_choice, "judge", lambda *arguments: verdict)
    with caplog.at_level(logging.INFO, "segserve"):
        assert open_on(ZEN4).name == "onnxruntime-cpu"
        assert "runs on ONNX Runtime: in bf16 of OpenVINO 90 % are equal" in caplog.text
        # Who asks for OpenVINO has it in float32 then.
        engine = open_on(ZEN4, "openvino")
    assert (engine.name, engine.spec.precision) == ("openvino-cpu", "fp32")
    assert "runs on OpenVINO in fp32: in bf16 of OpenVINO 90 % are equal" in caplog.text


@needs_openvino
def test_what_was_compared_is_kept(
    open_on: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    stay_in_float32(monkeypatch)
    calls: list[object] = []

    def count(*arguments: object) -> Verdict:
        calls.append(arguments)
        return Verdict(1.0, accepted=True, reason="all are equal")

    monkeypatch.setattr(cpu_choice, "judge", count)
    for _ in range(2):
        assert open_on(AMX).name == "openvino-cpu"
    assert len(calls) == 1
    # As after a new start: on disk.
    monkeypatch.setattr(cpu_choice, "_VERDICTS", {})
    open_on(AMX)
    assert len(calls) == 1
    # Another processor rounds in its own way.
    open_on(ZEN4)
    assert len(calls) == 2


@needs_openvino
def test_a_graph_that_openvino_refuses_is_served_all_the_same(
    open_on: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise InvalidModel("OpenVINO cannot load it: no such operator")

    monkeypatch.setattr(cpu_choice, "OpenVinoEngine", refuse)
    assert open_on(AMX).name == "onnxruntime-cpu"
    assert "model small runs on ONNX Runtime: OpenVINO cannot load it" in caplog.text
    with pytest.raises(InvalidModel, match="no such operator"):
        open_on(AMX, "openvino")


def test_the_log_says_once_what_installing_it_would_bring(
    open_on: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cpu_choice, "has_openvino", lambda: False)
    cpu_choice._hint.cache_clear()
    with caplog.at_level(logging.INFO, "segserve"):
        for _ in range(2):
            assert open_on(ZEN4).name == "onnxruntime-cpu"
    (record,) = caplog.records
    assert "AVX512-BF16" in record.message
    assert "pip install 'segserve[openvino]'" in record.message
    caplog.clear()
    open_on(OLD)
    assert not caplog.records
    monkeypatch.setattr(cpu_choice, "read_processor", lambda: AMX)
    assert describe_choice("fp32", Acceleration()) == ("onnxruntime", "fp32")


def test_what_inspect_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_choice, "has_openvino", lambda: True)
    monkeypatch.setattr(cpu_choice, "read_processor", lambda: AMX)
    assert describe_choice("fp16", Acceleration()) == ("openvino", "bf16")
    assert describe_choice("int8", Acceleration()) == ("openvino", "int8")
    monkeypatch.setattr(cpu_choice, "read_processor", lambda: OLD)
    assert describe_choice("fp16", Acceleration()) == ("onnxruntime", "fp16")


class Answering:
    """An engine that answers what it is told."""

    name = "told"
    spec = EngineSpec(Size(4, 6), 3, Size(4, 6), 1, 1, "fp32")

    def __init__(self, answer: Callable[[npt.NDArray[np.uint8]], Prediction]) -> None:
        self.answer = answer

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        return self.answer(batch)

    def warm(self) -> None: ...

    def close(self) -> None: ...


def channels(batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return batch.transpose(0, 3, 1, 2).astype(np.float32)


def judge_answer(path: Path, change: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
                 model: onnx.ModelProto | None = None) -> Verdict:  # fmt: skip
    onnx.save(model or make_graph(), str(path / "model.onnx"))
    engine = Answering(lambda batch: Prediction(change(channels(batch)), None))
    return judge(engine, path / "model.onnx", 1, Acceleration())


def test_labels_of_one_picture_are_compared(tmp_path: Path) -> None:
    same = judge_answer(tmp_path, lambda logits: logits)
    assert (same.agreement, same.accepted) == (1.0, True)
    other = judge_answer(tmp_path, lambda logits: logits[:, ::-1].copy())
    assert other.agreement < 0.9
    assert not other.accepted
    assert "99.50 % are needed" in other.reason


def test_what_is_not_finite_is_not_compared(tmp_path: Path) -> None:
    broken = judge_answer(tmp_path, lambda logits: logits * np.float32(np.nan))
    assert not broken.accepted
    assert "OpenVINO's answer to a picture is not finite" in broken.reason
    model = make_graph()
    model.graph.initializer[0].float_data[0] = np.nan
    theirs = judge_answer(tmp_path, lambda logits: logits, model)
    assert not theirs.accepted
    assert "ONNX Runtime's answer to a picture is not finite" in theirs.reason


def test_where_all_is_one_class_the_logits_are_compared(tmp_path: Path) -> None:
    model = make_graph()
    tensor = helper.make_tensor("one", TensorProto.FLOAT, [1, 3, 1, 1], [1.0, 0.0, 0.0])
    model.graph.initializer[0].CopyFrom(tensor)

    def first_alone(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return logits * np.array([1, 0, 0], np.float32)[:, None, None]

    assert judge_answer(tmp_path, first_alone, model).accepted
    other = judge_answer(tmp_path, lambda logits: first_alone(logits) * 2, model)
    assert other.agreement == 1.0
    assert not other.accepted


def test_the_picture_is_like_a_photo_in_every_size() -> None:
    for size in (Size(4, 6), Size(352, 480), Size(700, 900)):
        picture = read_picture(size)
        assert picture.shape == (1, size.height, size.width, 3)
        assert picture.std() > 20


def test_an_int8_network_without_its_roundings(tmp_path: Path) -> None:
    """A ReLU may be no more than the lower end of what uint8 can say."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        helper.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["w"]),
        helper.make_node("Mul", ["y", "w"], ["logits"]),
    ]
    weights = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5]),
        helper.make_tensor("zero", TensorProto.UINT8, [], [10]),
        helper.make_tensor("w8", TensorProto.UINT8, [], [12]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    plain = without_quantisers(model)
    assert [node.op_type for node in plain.graph.node] == [
        "QuantizeLinear", "Clip", "DequantizeLinear", "Mul",
    ]  # fmt: skip
    session = onnxruntime.InferenceSession(plain.SerializeToString())
    values = np.array([-100, -5.1, -5, 0.3, 122.4, 122.5, 500], np.float32)
    (found,) = session.run(["logits"], {"x": values})
    np.testing.assert_allclose(found, np.clip(values, -5, 122.5), rtol=1e-6)


@needs_openvino
@pytest.mark.slow
def test_the_shipped_network_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSERVE_CACHE_DIR", str(tmp_path))
    precision = "bf16" if read_processor().multiplies_bf16 else "fp32"
    engine = OpenVinoEngine(SHIPPED, instances=1, threads=2, max_batch_size=1, precision=precision)
    verdict = judge(engine, SHIPPED, 2, Acceleration())
    assert verdict.accepted, verdict.reason
    own = OnnxEngine(SHIPPED, instances=1, threads=1, max_batch_size=1)
    assert judge(own, SHIPPED, 1, Acceleration()).agreement == 1.0
