"""OpenVINO's engine: the same answers as ONNX Runtime's, and its own files, memory and errors."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.engines import openvino as engine_module
from serving.engines.acceleration import Acceleration, OpenVinoOptions
from serving.engines.onnxruntime import OnnxEngine
from serving.engines.openvino import OpenVinoEngine, import_openvino
from serving.errors import EngineFailed, InvalidModel
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction
from serving.models.repository import ModelFolder
from serving.settings import Settings
from serving.testing import ServerThread
from tests.support.band_model import bands, encode, free_ports, write_model
from tests.support.contract_graph import make_graph
from tests.support.engine_parity import check_parity, make_batch, needs_openvino
from tests.support.running import running
from tests.support.waiting import SECONDS, until

pytestmark = needs_openvino
SHIPPED = Path(__file__).parents[3] / "model_repository" / "icnet" / "1" / "model.onnx"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGSERVE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


def open_engine(path: Path, model: onnx.ModelProto, **options: object) -> OpenVinoEngine:
    onnx.save(model, str(path / "model.onnx"))
    given: dict[str, object] = {"instances": 1, "threads": 1, "max_batch_size": 2, **options}
    return OpenVinoEngine(path / "model.onnx", **given)  # type: ignore[arg-type]  # by name


def image(n: int = 2) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 255, (n, 4, 6, 3), np.uint8)


def logits_of(prediction: Prediction) -> npt.NDArray[np.float32]:
    assert prediction.logits is not None
    return prediction.logits


def logits_graph(*behind: onnx.NodeProto) -> onnx.ModelProto:
    """As :func:`make_graph` with logits alone, which further nodes make of ``wide``."""
    model = make_graph(("logits",))
    del model.graph.node[3:]
    if behind:
        model.graph.node[2].output[0] = "wide"
        model.graph.node.extend(behind)
    return model


def quantised_graph() -> onnx.ModelProto:
    """As :func:`make_graph`, with its logits rounded to whole numbers of 0 to 255."""
    model = logits_graph(
        helper.make_node("QuantizeLinear", ["wide", "scale", "zero_point"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "scale", "zero_point"], ["logits"]),
    )
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0]))
    model.graph.initializer.append(helper.make_tensor("zero_point", TensorProto.UINT8, [], [0]))
    return model


def test_logits_are_taken_where_the_graph_has_them(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, make_graph())
    assert engine.spec.size == Size(4, 6)
    assert (engine.spec.num_classes, engine.spec.logits_size) == (3, Size(4, 6))
    assert (engine.name, engine.spec.precision) == ("openvino-cpu", "fp32")
    engine.warm()
    batch = image()
    prediction = engine.run(batch)
    assert prediction.mask is None
    np.testing.assert_array_equal(prediction.logits, batch.transpose(0, 3, 1, 2))
    engine.close()


def test_a_graph_with_a_mask_alone_is_served_too(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, make_graph(("mask",)), instances=2)
    assert engine.spec.logits_size is None
    batch = image()
    prediction = engine.run(batch)
    assert prediction.logits is None
    np.testing.assert_array_equal(prediction.mask, batch.argmax(-1))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (make_graph(channels=4), r"UINT8 \[N,H,W,3\]"),
        (make_graph(height="H"), "static"),
        (make_graph(outputs=()), "needed: logits or mask"),
    ],
    ids=["four channels", "dynamic size", "no outputs"],
)
def test_graphs_beside_the_contract_are_refused_by_name(
    tmp_path: Path, model: onnx.ModelProto, text: str
) -> None:
    with pytest.raises(InvalidModel, match=text):
        open_engine(tmp_path, model)


def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph at all")
    with pytest.raises(InvalidModel, match=r"model\.onnx"):
        OpenVinoEngine(path, instances=1, threads=1, max_batch_size=1)


def test_an_operator_that_it_does_not_know_is_an_error_that_names_it(tmp_path: Path) -> None:
    model = logits_graph(helper.make_node("Unheard", ["wide"], ["logits"]))
    with pytest.raises(InvalidModel, match=r"model\.onnx: OpenVINO cannot load it: .*Unheard"):
        open_engine(tmp_path, model)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_shipped_network_answers_as_with_onnx_runtime(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "model.onnx"
    path.symlink_to(SHIPPED)
    try:
        check_parity(path, precision, batch_sizes=(1, 2, 3))
    except InvalidModel as error:
        if precision != "bf16":
            raise
        pytest.skip(str(error))


def test_an_int8_file_stays_int8(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, quantised_graph())
    assert engine.spec.precision == "int8"
    batch = image()
    np.testing.assert_array_equal(engine.run(batch).logits, batch.transpose(0, 3, 1, 2))
    check_parity(tmp_path / "model.onnx")


@pytest.mark.parametrize("largest", [1, 4, 7])
def test_batches_of_every_size_are_answered_image_by_image(tmp_path: Path, largest: int) -> None:
    engine = open_engine(tmp_path, make_graph(), max_batch_size=largest)
    for n in range(1, largest + 1):
        batch = image(n)
        np.testing.assert_array_equal(engine.run(batch).logits, batch.transpose(0, 3, 1, 2))


def test_shapes_are_compiled_when_they_occur(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, make_graph(), max_batch_size=8)

    def compiled() -> list[int]:
        return [n for n, graph in engine._compiled.items() if graph is not None]

    assert compiled() == [1]
    engine.run(image(3))
    assert compiled() == [2, 1]
    engine.warm()
    assert compiled() == [8, 4, 2, 1]


def test_pixels_are_read_where_they_lie(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, make_graph())
    batch = image()
    kept = batch.copy()
    batch.flags.writeable = False
    np.testing.assert_array_equal(engine.run(batch).logits, kept.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(batch, kept)
    # In another order in memory.
    turned = np.asfortranarray(kept)
    np.testing.assert_array_equal(engine.run(turned).logits, kept.transpose(0, 3, 1, 2))
    # Of a larger picture.
    wide = np.zeros((2, 4, 12, 3), np.uint8)
    wide[:, :, 3:9] = kept
    np.testing.assert_array_equal(engine.run(wide[:, :, 3:9]).logits, kept.transpose(0, 3, 1, 2))


def test_an_answer_is_its_own_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, make_graph())
    first = image()
    answer = logits_of(engine.run(first))
    before = answer.copy()
    engine.run(255 - first)
    np.testing.assert_array_equal(answer, before)
    pixels, result = weakref.ref(first), weakref.ref(answer)
    del first, answer
    gc.collect()
    assert pixels() is None
    assert result() is None


def test_two_instances_run_at_once_and_apart(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.symlink_to(SHIPPED)
    engine = OpenVinoEngine(path, instances=2, threads=2, max_batch_size=2)
    batches = [make_batch(engine.spec.size, 2)[[i % 2]] for i in range(2)]
    expected = [logits_of(engine.run(batch)).copy() for batch in batches]
    wrong: list[int] = []
    start = threading.Barrier(2)

    def work(index: int) -> None:
        start.wait(SECONDS)
        for _ in range(5):
            if not np.array_equal(logits_of(engine.run(batches[index])), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert wrong == []
    assert not np.array_equal(*expected)


def test_cores_are_shared_out_among_the_instances(tmp_path: Path) -> None:
    def cores(**options: object) -> tuple[int, int]:
        engine = open_engine(tmp_path, make_graph(), **options)
        config = engine._config
        assert config["ENABLE_CPU_PINNING"] is False
        return int(str(config["NUM_STREAMS"])), int(str(config["INFERENCE_NUM_THREADS"]))

    assert cores(threads=2) == (1, 2)
    assert cores(threads=7, instances=3) == (3, 6)
    assert cores(threads=1, instances=2) == (2, 2)
    two_each = Acceleration(intra_op_threads=2)
    assert cores(instances=2, acceleration=two_each) == (2, 4)
    asked = Acceleration(openvino=OpenVinoOptions(streams=1, threads=2))
    assert cores(instances=2, acceleration=asked) == (1, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    """Its activations would make 0 of them."""
    model = make_graph()
    del model.graph.initializer[0].float_data[:]
    model.graph.initializer[0].dims[:] = [6]
    model.graph.initializer[0].float_data.extend([1.0] * 5 + [value])
    with pytest.raises(InvalidModel, match="one holds NaN or infinity"):
        open_engine(tmp_path, model)


@pytest.mark.parametrize("left_out", [(), ("bias",), ("mask",), ("bias", "mask")])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"group": 3},
        {"offset_group": 3},
        {"strides": [2, 2]},
        {"dilations": [2, 2], "pads": [2, 0, 2, 2]},
    ],
    ids=lambda given: next(iter(given), "plain"),
)
def test_deformable_convolutions_equal_onnx_runtimes(
    tmp_path: Path, attributes: dict[str, object], left_out: tuple[str, ...]
) -> None:
    given: dict[str, object] = {"pads": [1, 0, 1, 1], "kernel_shape": [3, 2], **attributes}
    groups, parts = given.get("group", 1), given.get("offset_group", 1)
    random = np.random.default_rng(6)
    shapes = {
        "weight": (3, 3 // int(str(groups)), 3, 2),
        "bias": (3,),
        "turn": (12 * int(str(parts)), 3, 1, 1),
        "shade": (6 * int(str(parts)), 3, 1, 1),
    }
    strides = given.get("strides", [1, 1])
    bias, mask = ("" if name in left_out else name for name in ("bias", "mask"))
    model = logits_graph(
        helper.make_node("Mul", ["wide", "tenth"], ["data"]),
        helper.make_node("Conv", ["data", "turn"], ["offset"], strides=strides),
        helper.make_node("Conv", ["data", "shade"], ["mask"], strides=strides),
        helper.make_node("DeformConv", ["data", "weight", "offset", bias, mask], ["logits"],
                         **given),
    )  # fmt: skip
    model.opset_import[0].version, model.ir_version = 19, 9
    model.graph.initializer.append(helper.make_tensor("tenth", TensorProto.FLOAT, [], [0.1]))
    for name, shape in shapes.items():
        values = (0.1 * random.normal(size=shape)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    height, width = (2, 3) if strides == [2, 2] else (4, 6)
    for length, dimension in zip((height, width), (2, 3), strict=True):
        model.graph.output[0].type.tensor_type.shape.dim[dimension].dim_value = length
    engine = open_engine(tmp_path, model)
    other = OnnxEngine(tmp_path / "model.onnx", instances=1, threads=1, max_batch_size=2)
    found, expected = logits_of(engine.run(image())), logits_of(other.run(image()))
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(np.abs(expected).max()))


def test_an_infinite_bound_is_no_weight(tmp_path: Path) -> None:
    model = logits_graph(helper.make_node("Clip", ["wide", "", "most"], ["logits"]))
    model.graph.initializer.append(helper.make_tensor("most", TensorProto.FLOAT, [], [np.inf]))
    batch = image()
    found = open_engine(tmp_path, model).run(batch)
    np.testing.assert_array_equal(found.logits, batch.transpose(0, 3, 1, 2))


def test_a_run_that_fails_is_told_and_the_next_one_works(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, make_graph())
    with pytest.raises(EngineFailed, match=r"^OpenVINO: "):
        engine.run(np.zeros((1, 5, 6, 3), np.uint8))
    batch = image()
    np.testing.assert_array_equal(engine.run(batch).logits, batch.transpose(0, 3, 1, 2))


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    asked = Acceleration(openvino=OpenVinoOptions(device="GPU.7"))
    with pytest.raises(InvalidModel, match=r"finds no device GPU\.7; it has .*CPU"):
        open_engine(tmp_path, make_graph(), acceleration=asked)


def test_without_the_package_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InvalidModel, match=r"pip install 'segserve\[openvino\]'"):
        open_engine(tmp_path, make_graph())


def test_compiled_graphs_are_kept_between_starts(tmp_path: Path, cache: Path) -> None:
    open_engine(tmp_path, make_graph()).close()
    (folder,) = cache.iterdir()
    blobs = list(folder.glob("*.blob"))
    assert blobs
    engine = open_engine(tmp_path, make_graph())
    assert engine._compiled[1].get_property("LOADED_FROM_CACHE")
    # Damaged, as by a full disk.
    for blob in blobs:
        blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
    batch = image()
    found = open_engine(tmp_path, make_graph()).run(batch)
    np.testing.assert_array_equal(found.logits, batch.transpose(0, 3, 1, 2))
    # Another graph has a folder of its own.
    open_engine(tmp_path, make_graph(("mask",)))
    assert len(list(cache.iterdir())) == 2


def test_no_folder_to_write_to_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEGSERVE_CACHE_DIR", str(tmp_path / "file"))
    engine = open_engine(tmp_path, make_graph())
    assert engine.cache is None
    assert engine.run(image()).logits is not None


def test_the_cache_is_bounded(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age in range(4):
        folder = cache / f"old{age}"
        folder.mkdir(parents=True)
        (folder / "1.blob").write_bytes(bytes(1000))
        os.utime(folder, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(engine_module, "MAX_CACHE_BYTES", 2500)
    engine = open_engine(tmp_path, make_graph())
    assert engine.cache is not None
    assert {folder.name for folder in cache.iterdir()} == {"old0", "old1", engine.cache.name}


def test_importing_it_tells_nobody(tmp_path: Path) -> None:
    """Its conversion tools report each import to their maker, and mark the home folder."""
    program = """
import sys
from serving.engines.openvino import import_openvino
assert import_openvino().Core().available_devices
found = [name for name in sys.modules if "openvino_telemetry" in name or "openvino.tools" in name]
assert not found, found
"""
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_is_imported_once_by_all() -> None:
    assert import_openvino() is import_openvino()


def test_a_server_imports_it_where_it_is_used_alone() -> None:
    program = "import sys, serving.server; sys.exit('openvino' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def write_small_model(repository: Path) -> None:
    folder = write_model(repository, "bands")
    text = (folder / "config.pbtxt").read_text()
    text = text.replace("32, 48", "4, 6").replace("dims: [ 8,", "dims: [ 3,")
    (folder / "config.pbtxt").write_text(text)
    (folder / "labels.txt").write_text("a\nb\nc\n")
    onnx.save(make_graph(), str(folder / "1" / "model.onnx"))


def test_it_is_served_and_named_in_the_metrics(tmp_path: Path) -> None:
    write_small_model(tmp_path / "models")
    settings = free_ports(tmp_path / "models").model_copy(update={"cpu_engine": "openvino"})
    pixels = bands(4, 6)
    with ServerThread(settings) as server:
        url = f"http://127.0.0.1:{server.ports.http}"
        answer = httpx.post(f"{url}/v2/models/bands/segment?format=raw", content=encode(pixels))
        assert answer.status_code == 200
        assert (
            np.frombuffer(answer.content, np.uint8).tolist() == pixels.argmax(-1).ravel().tolist()
        )
        page = httpx.get(f"{url}/metrics").text
        (line,) = (x for x in page.splitlines() if x.startswith("segserve_model_info{"))
        assert 'engine="openvino-cpu"' in line


class Held(OpenVinoEngine):
    """Waits before each run until it may."""

    may_run: threading.Event
    sizes: list[int]

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        self.sizes.append(len(batch))
        assert self.may_run.wait(SECONDS)
        return super().run(batch)


async def test_who_leaves_is_not_inferred_and_disturbs_nobody(tmp_path: Path) -> None:
    write_small_model(tmp_path)
    opened: list[Held] = []

    def open_held(folder: ModelFolder, version: int, settings: Settings) -> Held:
        Held.may_run, Held.sizes = threading.Event(), []
        Held.may_run.set()
        opened.append(Held(folder.graph(version), instances=1, threads=1, max_batch_size=4))
        return opened[-1]

    url, content = "/v2/models/bands/segment?format=raw", encode(bands(4, 6))
    async with running(tmp_path, open_held) as (server, http):
        (engine,) = opened
        engine.sizes.clear()
        engine.may_run.clear()
        first = asyncio.create_task(http.post(url, content=content))
        await until(lambda: engine.sizes)
        batcher = server.registry.get("bands").batcher
        leaving = [asyncio.create_task(http.post(url, content=content)) for _ in range(2)]
        await until(lambda: batcher.waiting == 2)
        staying = asyncio.create_task(http.post(url, content=content))
        await until(lambda: batcher.waiting == 3)
        for task in leaving:
            task.cancel()
        await until(lambda: batcher.waiting == 1)
        engine.may_run.set()
        assert [(await task).status_code for task in (first, staying)] == [200, 200]
        assert engine.sizes == [1, 1]


def test_onnx_runtime_serves_the_same_graph_alike(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, make_graph())
    other = OnnxEngine(tmp_path / "model.onnx", instances=1, threads=1, max_batch_size=2)
    assert engine.spec == other.spec
