"""The engine of GPUs, run on the CPU's provider; and what it would ask of CUDA."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from serving.engine import EngineSpec, LabelEngine
from serving.engines import accelerated, devices
from serving.engines.accelerated import AcceleratedEngine, narrow_half_logits
from serving.engines.acceleration import Acceleration
from serving.engines.bound_session import BoundSession, Tensor, image_tensor
from serving.engines.devices import CudaDevice, Device, HostDevice, load_cuda_runtime
from serving.engines.graph import cut_graph
from serving.engines.onnxruntime import CPU, CUDA, Provider
from serving.errors import EngineFailed, InvalidModel
from serving.imaging.restore import labels_from_logits
from tests.support.contract_graph import make_graph

ROOT = Path(__file__).parents[3]


def on_cpu(spec: EngineSpec, device: Device) -> list[Provider]:
    return [(CPU, {})]


def open_engine(path: Path, instances: int = 2, max_batch_size: int = 3) -> AcceleratedEngine:
    return AcceleratedEngine(
        path,
        max_batch_size=max_batch_size,
        devices=[HostDevice() for _ in range(instances)],
        choose_providers=on_cpu,
        acceleration=Acceleration(),
    )


def save(tmp_path: Path, model: onnx.ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))
    return path


def images(n: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (n, 4, 6, 3), np.uint8)


def test_logits_or_labels_as_asked(tmp_path: Path) -> None:
    engine = open_engine(save(tmp_path, make_graph()))
    assert (engine.spec.instances, engine.spec.max_batch_size) == (2, 3)
    assert engine.name == "onnxruntime-cpu"
    assert isinstance(engine, LabelEngine)
    assert engine.gives_labels
    engine.warm()
    for n in (1, 2, 3):
        batch = images(n, seed=n)
        logits = engine.run(batch)
        assert logits.mask is None
        np.testing.assert_array_equal(logits.logits, batch.transpose(0, 3, 1, 2))
        labels = engine.run_labels(batch)
        assert labels.logits is None
        np.testing.assert_array_equal(labels.mask, batch.argmax(-1))
    engine.close()


def test_an_answer_is_not_overwritten_by_the_next(tmp_path: Path) -> None:
    engine = open_engine(save(tmp_path, make_graph()), instances=1)
    first, second = images(2, seed=1), images(3, seed=2)
    answer = engine.run(first).logits
    assert answer is not None
    engine.run(second)
    np.testing.assert_array_equal(answer, first.transpose(0, 3, 1, 2))


def test_instances_run_at_once(tmp_path: Path) -> None:
    engine = open_engine(save(tmp_path, make_graph()))
    batches = [images(1 + n % 3, seed=n) for n in range(40)]
    answers: list[np.ndarray | None] = [None] * len(batches)

    def work(start: int) -> None:
        for number in range(start, len(batches), 4):
            answers[number] = engine.run(batches[number]).logits

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(answer, batch.transpose(0, 3, 1, 2))


def test_graphs_with_one_output(tmp_path: Path) -> None:
    masks = open_engine(save(tmp_path, make_graph(("mask",))))
    assert not masks.gives_labels
    np.testing.assert_array_equal(masks.run(images(2)).mask, images(2).argmax(-1))
    assert not open_engine(save(tmp_path, make_graph(("logits",)))).gives_labels


def test_a_run_that_fails_is_an_error_and_the_engine_goes_on(tmp_path: Path) -> None:
    engine = open_engine(save(tmp_path, make_graph()), instances=1)
    with pytest.raises(EngineFailed, match="ONNX Runtime"):
        engine.run(images(4))  # more than the largest batch
    assert engine.run(images(1)).logits is not None


def test_a_device_that_fails_names_its_error(tmp_path: Path) -> None:
    class Broken(HostDevice):
        def synchronise(self) -> None:
            raise EngineFailed("cudaStreamSynchronize: an illegal memory access (700)")

    engine = AcceleratedEngine(
        save(tmp_path, make_graph()), max_batch_size=1, devices=[Broken()],
        choose_providers=on_cpu, acceleration=Acceleration(),
    )  # fmt: skip
    with pytest.raises(EngineFailed, match=r"^cudaStreamSynchronize"):
        engine.run(images(1))


def test_without_the_provider_the_model_is_refused(tmp_path: Path) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with (
        pytest.warns(UserWarning, match="not in available provider"),
        pytest.raises(InvalidModel, match="CUDAExecutionProvider does not start"),
    ):
        AcceleratedEngine(
            save(tmp_path, make_graph()), max_batch_size=1, devices=[HostDevice()],
            choose_providers=lambda spec, device: [(CUDA, {}), (CPU, {})],
            acceleration=Acceleration(),
        )  # fmt: skip


def test_what_cannot_be_captured_is_opened_without_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[dict[str, str]] = []
    real = accelerated.open_session

    def refuse(
        path: Path, content: bytes, options: onnxruntime.SessionOptions, providers: list[Provider]
    ) -> onnxruntime.InferenceSession:
        opened.append(dict(providers[0][1]))
        if providers[0][1].get("enable_cuda_graph") == "1":
            raise InvalidModel("all compute graph nodes have not been partitioned to CUDA")
        return real(path, content, options, [(CPU, {})])

    monkeypatch.setattr(accelerated, "open_session", refuse)
    engine = AcceleratedEngine(
        save(tmp_path, make_graph()), max_batch_size=1, devices=[HostDevice()],
        choose_providers=lambda spec, device: [(CUDA, {"enable_cuda_graph": "1"}), (CPU, {})],
        acceleration=Acceleration(),
    )  # fmt: skip
    assert opened == [{"enable_cuda_graph": "1"}, *[{"enable_cuda_graph": "0"}] * 2]
    assert "opened without CUDA graphs" in caplog.text
    np.testing.assert_array_equal(engine.run_labels(images(1)).mask, images(1).argmax(-1))


def test_float16_logits_are_half_the_bytes_and_the_same_labels(tmp_path: Path) -> None:
    """The shipped ICNet is float16: what crosses the bus is rounded to float16 once more."""
    path = ROOT / "model_repository" / "icnet" / "1" / "model.onnx"
    engine = open_engine(path, instances=1, max_batch_size=1)
    assert engine.spec.precision == "fp16"
    narrow = narrow_half_logits(cut_graph(onnx.load(str(path)), "logits"))
    onnx.checker.check_model(narrow, full_check=True)
    assert narrow.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    rows = np.linspace(0, 255, 352, dtype=np.uint8)[:, None, None]
    image = (
        np.broadcast_to(rows, (352, 480, 3)) // 2 + images(1).repeat(88, 1).repeat(80, 2)[0] // 2
    )
    session = onnxruntime.InferenceSession(str(path), providers=[CPU])
    (wide,) = session.run(["logits"], {"image": image[None]})
    found = engine.run(image[None])[0].logits
    assert found is not None
    assert found.dtype == np.float32
    assert np.abs(found - wide[0]).max() <= np.abs(wide).max() * 2**-11
    size = engine.spec.size
    same = labels_from_logits(found, size, size) == labels_from_logits(wide[0], size, size)
    assert same.mean() > 0.9995
    on_device = engine.run_labels(image[None])[0].mask
    assert (on_device == labels_from_logits(wide[0], size, size)).mean() > 0.9999


class FakeCuda:
    """The calls of the CUDA runtime, noted; copies are made, as its memory is the host's."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.failing = failing
        self.cudaGetErrorString = Explain()

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: object) -> int:
            if name == "cudaStreamCreateWithFlags":
                # byref(handle): the fake writes the handle where CUDA would.
                arguments[0]._obj.value = 0x5717  # type: ignore[attr-defined]
                arguments = arguments[1:]
            values = tuple(int(a.value or 0) for a in arguments)  # type: ignore[attr-defined]
            self.calls.append((name, values))
            if name == "cudaMemcpyAsync":
                ctypes.memmove(values[0], values[1], values[2])
            return 700 if name == self.failing else 0

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


class Explain:
    restype: object = None

    def __call__(self, code: int) -> bytes:
        return b"an illegal memory access"


class HostCudaDevice(CudaDevice):
    """Everything of CUDA but its memory, which only ONNX Runtime's CUDA build can allocate."""

    kind = "cpu"

    def allocate(self, size: int) -> devices.Block:
        return HostDevice().allocate(size)


def test_what_cuda_is_asked_for(tmp_path: Path) -> None:
    cuda = FakeCuda()
    device = HostCudaDevice(cuda, 1)  # type: ignore[arg-type]
    assert device.stream == 0x5717
    assert cuda.calls == [("cudaSetDevice", (1,)), ("cudaStreamCreateWithFlags", (1,))]
    session = onnxruntime.InferenceSession(
        cut_graph(make_graph(), "mask").SerializeToString(), providers=[CPU]
    )
    mask = Tensor("mask", np.dtype(np.uint8), (4, 6))
    bound = BoundSession(session, device, image_tensor(4, 6), mask, 2, graphs=True)
    sizes = [values[1] for name, values in cuda.calls if name == "cudaHostRegister"]
    assert sizes == [2 * 4 * 6 * 3, 2 * 4 * 6]
    cuda.calls.clear()
    np.testing.assert_array_equal(bound.run(images(1)), images(1).argmax(-1))
    # Up and down on the one stream, no more bytes than one image has, and one wait at the end.
    assert cuda.names() == ["cudaMemcpyAsync", "cudaMemcpyAsync", "cudaStreamSynchronize"]
    copied = [(values[2], values[3], values[4]) for _, values in cuda.calls[:2]]
    assert copied == [(72, 1, 0x5717), (24, 2, 0x5717)]
    device.close()
    assert cuda.names()[-4:] == [
        "cudaSetDevice", "cudaHostUnregister", "cudaHostUnregister", "cudaStreamDestroy",
    ]  # fmt: skip


def test_each_batch_size_is_a_graph_of_its_own() -> None:
    session = onnxruntime.InferenceSession(
        cut_graph(make_graph(), "mask").SerializeToString(), providers=[CPU]
    )
    mask = Tensor("mask", np.dtype(np.uint8), (4, 6))
    device = HostCudaDevice(FakeCuda(), 0)  # type: ignore[arg-type]
    for graphs, ids in ((True, ["1", "2", "3"]), (False, ["", "", ""])):
        bound = BoundSession(session, device, image_tensor(4, 6), mask, 3, graphs=graphs)
        found = []
        for run in bound._runs.values():
            assert (
                run.options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
            )
            try:
                found.append(run.options.get_run_config_entry("gpu_graph_id"))
            except RuntimeError:
                found.append("")
        assert found == ids


def test_memory_that_is_not_pinned_is_not_registered() -> None:
    cuda = FakeCuda()
    device = CudaDevice(cuda, 0, pinned=False)  # type: ignore[arg-type]
    device.host(100)
    device.close()
    assert "cudaHostRegister" not in cuda.names()
    assert "cudaHostUnregister" not in cuda.names()


def test_cuda_s_own_error_is_told() -> None:
    with pytest.raises(
        EngineFailed, match=r"^cudaStreamCreateWithFlags: an illegal memory access \(700\)$"
    ):
        CudaDevice(FakeCuda("cudaStreamCreateWithFlags"), 0)  # type: ignore[arg-type]


def test_no_cuda_runtime_names_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    tried: list[str] = []

    def load(name: str) -> ctypes.CDLL:
        tried.append(name)
        if name.endswith("13"):
            raise OSError(f"{name}: cannot open shared object file")
        return ctypes.CDLL(None)

    assert load_cuda_runtime(load=load) is not None
    assert tried == ["libcudart.so.13", "libcudart.so.12"]
    with pytest.raises(EngineFailed, match=r"libcudart\.so\.99"):
        load_cuda_runtime(["libcudart.so.99"])
