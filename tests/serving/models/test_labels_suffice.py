"""Who is content with labels from the device, and what a batch then asks of its engine."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnx import save
from PIL import Image

from serving.batching.batcher import Batcher
from serving.batching.queue import BatchLimits, BatchObserver, Execution
from serving.errors import EngineFailed, InvalidModel
from serving.imaging.geometry import Size, plan
from serving.imaging.restore import Prediction, labels_suffice
from serving.models import embedded
from serving.models.embedded import open_onnx_engine
from serving.models.repository import read_model
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread
from tests.support.contract_graph import make_graph
from tests.support.waiting import until

SIZE = Size(4, 6)


class DeviceEngine(FakeEngine):
    """A fake that can answer labels as well; notes which way each batch went."""

    def __init__(self, *, gives_labels: bool = True) -> None:
        super().__init__(SIZE)
        self.gives_labels = gives_labels
        self.ways: list[str] = []

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        self.ways.append("logits")
        return super().run(batch)

    def run_labels(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        self.ways.append("labels")
        self.hold.wait()
        return Prediction(None, (batch[..., 0].astype(np.int64) * 8 // 256).astype(np.uint8))


class Silent(BatchObserver):
    def queue_changed(self, length: int) -> None: ...

    def batch_done(self, execution: Execution) -> None: ...

    def rejected(self, reason: str) -> None: ...

    def engine_failed(self, kind: str) -> None: ...


def run_batches(engine: DeviceEngine, *asked: bool) -> list[Prediction]:
    """The first image occupies the engine, so that the others run as one batch."""

    async def run() -> list[Prediction]:
        limits = BatchLimits(10, 1 << 20, 10_000)
        batcher = Batcher(engine, limits, Silent(), time.monotonic)
        batcher.start()
        engine.hold.clear()
        image = np.full((4, 6, 3), 100, np.uint8)
        tasks = [
            asyncio.create_task(batcher.submit(image, labels_suffice=suffice)) for suffice in asked
        ]
        await until(lambda: engine.ways)
        engine.hold.set()
        answers = await asyncio.gather(*tasks)
        await batcher.drain()
        return [answer.prediction for answer in answers]

    return asyncio.run(run())


def test_a_batch_whose_images_need_labels_alone_asks_for_no_more() -> None:
    engine = DeviceEngine()
    answers = run_batches(engine, True, True, True)
    assert set(engine.ways) == {"labels"}
    for answer in answers:
        assert answer.logits is None
        assert answer.mask is not None
        assert (answer.mask == 3).all()


def test_one_image_that_needs_logits_brings_them_for_all() -> None:
    engine = DeviceEngine()
    answers = run_batches(engine, False, True, False, True)
    assert "logits" in engine.ways
    needed = [answer for answer, suffice in zip(answers, (0, 1, 0, 1), strict=True) if not suffice]
    assert all(answer.logits is not None for answer in needed)


def test_an_engine_that_gives_no_labels_is_not_asked() -> None:
    engine = DeviceEngine(gives_labels=False)
    run_batches(engine, True, True)
    assert set(engine.ways) == {"logits"}


@pytest.mark.parametrize(
    ("original", "target", "smooth", "resize", "suffices"),
    [
        (SIZE, SIZE, None, "stretch", True),
        (SIZE, SIZE, True, "stretch", True),
        (Size(8, 12), Size(8, 12), None, "stretch", False),
        (Size(8, 12), Size(8, 12), True, "stretch", False),
        (Size(8, 12), Size(8, 12), False, "stretch", True),
        (Size(8, 12), SIZE, None, "stretch", True),
        (Size(2, 6), Size(2, 6), None, "letterbox", True),
        (Size(4, 12), Size(4, 12), None, "letterbox", False),
    ],
)
def test_where_labels_suffice(
    original: Size, target: Size, smooth: bool | None, resize: str, suffices: bool
) -> None:
    view = plan(original, SIZE, resize).only_view
    assert labels_suffice(view, target, smooth) is suffices


def write_repository(folder: Path, classes: int = 3) -> Path:
    model = folder / "tiny"
    (model / "1").mkdir(parents=True)
    save(make_graph(), str(model / "1" / "model.onnx"))
    (model / "labels.txt").write_text("\n".join("abcdefgh"[:classes]) + "\n")
    tensor = 'name: "{}" data_type: {} dims: [{}]'
    (model / "config.pbtxt").write_text(
        'name: "tiny" platform: "onnxruntime_onnx" max_batch_size: 2\n'
        f"input {{ {tensor.format('image', 'TYPE_UINT8', '4, 6, 3')} }}\n"
        f"output {{ {tensor.format('mask', 'TYPE_UINT8', '4, 6')} }}\n"
        f"output {{ {tensor.format('logits', 'TYPE_FP32', f'{classes}, 4, 6')} }}\n"
    )
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DeviceEngine, int]]:
    repository = write_repository(tmp_path_factory.mktemp("models"), classes=8)
    engine = DeviceEngine()
    settings = Settings(repository=repository, http_port=0, grpc_port=0, metrics_port=0)
    with ServerThread(settings, lambda folder, version, settings: engine) as server:
        yield engine, server.ports.http


@pytest.mark.parametrize(
    ("query", "height", "way"),
    [
        ("", 4, "labels"),
        ("?confidence=true&format=stats", 4, "logits"),
        ("", 8, "logits"),
        ("?smooth=false", 8, "labels"),
        ("?size=model", 8, "labels"),
    ],
)
def test_what_a_request_asks_of_the_engine(
    served: tuple[DeviceEngine, int], query: str, height: int, way: str
) -> None:
    engine, port = served
    file = io.BytesIO()
    Image.fromarray(np.full((height, 6, 3), 200, np.uint8)).save(file, "PNG")
    engine.ways.clear()
    url = f"http://127.0.0.1:{port}/v2/models/tiny/segment{query}"
    answer = httpx.post(url, content=file.getvalue())
    assert answer.status_code == 200, answer.text
    assert engine.ways == [way]
    if not query:
        labels = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert labels.shape == (height, 6)
        assert (labels == 6).all()


def test_where_the_gpu_does_not_start_the_cpu_serves_unless_it_was_demanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise EngineFailed("no CUDA runtime library: libcudart.so.12")

    present = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: present)
    monkeypatch.setattr(embedded, "load_cuda_runtime", fail)
    repository = write_repository(tmp_path)
    settings = Settings(repository=repository, threads=1)
    engine = open_onnx_engine(read_model(repository / "tiny"), 1, settings)
    assert engine.name == "onnxruntime-cpu"
    assert "tiny runs on the CPU: no CUDA runtime library" in caplog.text
    config = repository / "tiny" / "config.pbtxt"
    config.write_text(config.read_text() + "instance_group { kind: KIND_GPU }\n")
    with pytest.raises(InvalidModel, match="no CUDA runtime library"):
        open_onnx_engine(read_model(repository / "tiny"), 1, settings)
    config.write_text(config.read_text().replace("KIND_GPU", "KIND_CPU count: 2"))
    assert open_onnx_engine(read_model(repository / "tiny"), 1, settings).spec.instances == 2
