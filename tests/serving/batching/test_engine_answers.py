"""What an engine answers is checked before a label map is made of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import httpx
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.batching.engine_runner import check_prediction, find_not_finite
from serving.engine import EngineSpec
from serving.errors import EngineFailed
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction
from serving.models.embedded import open_onnx_engine
from serving.models.repository import ModelFolder, read_model
from serving.models.sources import LocalRepository
from serving.oip.messages import complete_config
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import (
    CLASSES,
    MODEL_SIZE,
    bands,
    encode,
    free_ports,
    serve_fake,
    write_model,
)
from tests.support.contract_graph import make_graph
from tests.support.running import running
from tests.support.waiting import until

SEGMENT = "/v2/models/bands/segment?format=raw"
GOOD = encode(bands(32, 48))
# Its pixels are the poison: a picture that overflows.
POISON = encode(np.full((32, 48, 3), 7, np.uint8))


class Overflowing(FakeEngine):
    """Its logits hold ``value`` where a picture begins with 7."""

    def __init__(self, value: float = np.nan) -> None:
        super().__init__(MODEL_SIZE)
        self.value = value

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        prediction = super().run(batch)
        assert prediction.logits is not None
        for image, logits in zip(batch, prediction.logits, strict=True):
            if image[0, 0, 0] == 7:
                logits[3, 5, 11] = self.value
        return prediction


def failures(page: str, reason: str) -> float:
    name = f'segserve_engine_failures_total{{model="bands",reason="{reason}"}} '
    (line,) = (line for line in page.splitlines() if line.startswith(name))
    return float(line.removeprefix(name))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_logits_that_are_not_finite_are_an_error_of_the_engine(
    repository: Path, value: float
) -> None:
    async with running(repository, serve_fake(Overflowing(value))) as (_, http):
        answer = await http.post(SEGMENT, content=POISON)
        assert (answer.status_code, answer.json()["code"]) == (500, "engine_failed")
        assert "not finite" in answer.json()["error"]
        # The largest finite numbers are none.
        assert (await http.post(SEGMENT, content=GOOD)).status_code == 200
        page = (await http.get("/metrics")).text
        assert failures(page, "not_finite") == 1
        assert failures(page, "failed") == 0
        assert 'segserve_requests_total{code="engine_failed",model="bands"} 1.0' in page


async def test_batch_mates_of_such_a_picture_have_their_answers(repository: Path) -> None:
    engine = Overflowing()
    async with running(repository, serve_fake(engine)) as (server, http):
        engine.hold.clear()
        first = asyncio.create_task(http.post(SEGMENT, content=GOOD))
        await until(lambda: engine.batch_sizes)
        others = [
            asyncio.create_task(http.post(SEGMENT, content=content))
            for content in (GOOD, POISON, GOOD)
        ]
        await until(lambda: server.registry.get("bands").batcher.waiting == 3)
        engine.hold.set()
        codes = [(await task).status_code for task in (first, *others)]
        assert engine.batch_sizes == [1, 3]
        assert codes == [200, 200, 500, 200]
        assert server.registry.get("bands").is_ready


async def test_an_engine_that_goes_on_so_is_opened_anew(repository: Path) -> None:
    engines: list[Overflowing] = []

    def open_engine(folder: ModelFolder, version: int, settings: Settings) -> Overflowing:
        engines.append(Overflowing())
        return engines[-1]

    async with running(repository, open_engine, max_engine_failures=2) as (_, http):
        for _ in range(2):
            assert (await http.post(SEGMENT, content=POISON)).status_code == 500
        await until(lambda: len(engines) == 2)
        model = "/v2/models/bands/ready"

        async def is_ready() -> bool:
            return (await http.get(model)).status_code == 200

        while not await is_ready():
            pass
        assert (await http.post(SEGMENT, content=GOOD)).status_code == 200
        assert engines[0].closed


SPEC = EngineSpec(Size(4, 6), 3, Size(2, 3), 4, 1, "fp32")


def test_every_bit_pattern_that_is_not_finite_is_found() -> None:
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 1 << 32, 200_000, np.uint32)
    values = bits.view(np.float32)
    images = values.reshape(-1, 1, 10, 10)
    images[::3] = np.where(np.isfinite(images[::3]), images[::3], np.float32(3.4e38))
    with np.errstate(invalid="ignore"):
        expected = {i for i, image in enumerate(images) if not np.isfinite(image).all()}
    assert find_not_finite(Prediction(images, None)) == expected
    assert 0 < len(expected) < len(images)
    # A view that is not contiguous.
    assert find_not_finite(Prediction(images[..., ::-1], None)) == expected
    assert find_not_finite(Prediction(None, np.zeros((1, 4, 6), np.uint8))) == frozenset()


def logits(*shape: int, dtype: str = "float32") -> Prediction:
    return Prediction(np.zeros(shape, dtype), None)


@pytest.mark.parametrize(
    "prediction",
    [
        logits(1, 3, 2, 3), logits(2, 3, 3, 2), logits(2, 4, 2, 3), logits(2, 3, 2),
        logits(2, 3, 2, 3, dtype="float16"), logits(2, 3, 2, 3, dtype="float64"),
        logits(2, 3, 2, 3, dtype="int32"), Prediction(None, None),
        Prediction(None, np.zeros((2, 2, 3), np.uint8)),
        Prediction(None, np.zeros((2, 4, 6), np.int64)),
    ],
)  # fmt: skip
def test_other_shapes_and_datatypes_are_wrong_answers(prediction: Prediction) -> None:
    with pytest.raises(EngineFailed) as caught:
        check_prediction(prediction, SPEC, 2)
    assert caught.value.kind == "wrong_answer"


def test_the_right_ones_pass() -> None:
    check_prediction(logits(2, 3, 2, 3), SPEC, 2)
    check_prediction(Prediction(None, np.zeros((2, 4, 6), np.uint8)), SPEC, 2)


Respond = Callable[[service_pb2.ModelInferRequest, service_pb2.ModelInferResponse], None]


class Lying(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A Triton server of one model, which answers as ``respond`` changes a right answer."""

    def __init__(self, folder: ModelFolder) -> None:
        self.config = complete_config(folder)
        self.respond: Respond = lambda request, response: None

    def ServerReady(self, request: object, context: object) -> object:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, request: object, context: object) -> object:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)

    def RepositoryIndex(self, request: object, context: object) -> object:  # noqa: N802
        answer = service_pb2.RepositoryIndexResponse()
        answer.models.add(name="bands", version="1", state="READY")
        return answer

    def ModelConfig(self, request: object, context: object) -> object:  # noqa: N802
        return service_pb2.ModelConfigResponse(config=self.config)

    def ModelInfer(  # noqa: N802
        self, request: service_pb2.ModelInferRequest, context: object
    ) -> service_pb2.ModelInferResponse:
        n = request.inputs[0].shape[0]
        answer = service_pb2.ModelInferResponse(model_name="bands", model_version="1")
        answer.outputs.add(name="logits", datatype="FP32", shape=[n, 8, 32, 48])
        answer.raw_output_contents.append(np.zeros((n, 8, 32, 48), np.float32).tobytes())
        self.respond(request, answer)
        return answer


@pytest.fixture
def lying(tmp_path: Path) -> Iterator[tuple[Lying, httpx.Client]]:
    classes = json.dumps(CLASSES).replace('"', '\\"')
    triton = Lying(read_model(write_model(tmp_path / "models", classes=classes)))
    behind = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, behind)
    port = behind.add_insecure_port("127.0.0.1:0")
    behind.start()
    settings = free_ports(tmp_path / "nowhere").model_copy(
        update={
            "engine": "triton",
            "triton_url": f"127.0.0.1:{port}",
            "triton_shared_memory": False,
            "max_engine_failures": 100,
        }
    )
    with (
        ServerThread(settings) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.ports.http}", timeout=60) as http,
    ):
        yield triton, http
    behind.stop(None)


def change(**fields: object) -> Respond:
    def respond(request: object, response: service_pb2.ModelInferResponse) -> None:
        for name, value in fields.items():
            if name == "shape":
                del response.outputs[0].shape[:]
                response.outputs[0].shape.extend(value)
            elif name in ("name", "datatype"):
                setattr(response.outputs[0], name, value)
            elif name == "raw":
                del response.raw_output_contents[:]
                response.raw_output_contents.extend(value)
            else:
                setattr(response, name, value)

    return respond


def no_outputs(request: object, response: service_pb2.ModelInferResponse) -> None:
    del response.outputs[:]


def one_more(request: object, response: service_pb2.ModelInferResponse) -> None:
    response.outputs.add(name="mask", datatype="UINT8", shape=[1, 32, 48])


RAW = np.zeros((1, 8, 32, 48), np.float32)
NAN = RAW.copy()
NAN[0, 1, 2, 3] = np.nan


@pytest.mark.parametrize(
    ("respond", "reason", "why"),
    [
        (change(datatype="INT32"), "wrong_answer", "INT32"),
        (change(datatype="FP16", raw=[b"\0" * 24576]), "wrong_answer", "FP16"),
        (change(datatype=""), "wrong_answer", "expected logits FP32"),
        (change(name="scores"), "wrong_answer", "scores"),
        (change(shape=[1, 8, 48, 32]), "wrong_answer", r"\[1, 8, 48, 32\]"),
        (change(shape=[2, 8, 32, 48]), "wrong_answer", r"\[2, 8, 32, 48\]"),
        (change(shape=[]), "wrong_answer", "logits FP32 "),
        (change(model_name="other"), "wrong_answer", "'other'"),
        (change(model_version="7"), "wrong_answer", "version 7"),
        (change(raw=[]), "wrong_answer", "0 raw bytes"),
        (change(raw=[b"\0" * 7]), "wrong_answer", "7 raw bytes|0 raw bytes"),
        (change(raw=[RAW.tobytes() + b"\0"]), "wrong_answer", "raw bytes"),
        (change(raw=[RAW.tobytes(), b""]), "wrong_answer", "raw bytes"),
        (no_outputs, "wrong_answer", "no output"),
        (one_more, "wrong_answer", "mask"),
        (change(raw=[NAN.tobytes()]), "not_finite", "not finite"),
    ],
)
def test_a_triton_server_that_answers_something_else_is_an_error(
    lying: tuple[Lying, httpx.Client], respond: Respond, reason: str, why: str
) -> None:
    triton, http = lying
    assert http.post(SEGMENT, content=GOOD).status_code == 200
    triton.respond = respond
    answer = http.post(SEGMENT, content=GOOD)
    assert (answer.status_code, answer.json()["code"]) == (500, "engine_failed")
    with pytest.raises(ValueError, match=why):
        raise ValueError(answer.json()["error"])
    assert failures(http.get("/metrics").text, reason) == 1


def test_an_onnx_graph_whose_weights_are_broken(tmp_path: Path) -> None:
    """A real graph: a weight that is NaN, as after a training that diverged."""
    folder = write_model(tmp_path, "bands")
    text = (folder / "config.pbtxt").read_text()
    text = text.replace("32, 48", "4, 6").replace("dims: [ 8,", "dims: [ 3,")
    (folder / "config.pbtxt").write_text(text)
    (folder / "labels.txt").write_text("a\nb\nc\n")
    graph = make_graph()
    graph.graph.initializer[0].float_data[0] = np.nan
    onnx.save(graph, folder / "1" / "model.onnx")
    settings = free_ports(tmp_path)
    assert LocalRepository(settings).names() == ["bands"]
    with ServerThread(settings, open_onnx_engine) as server:
        url = f"http://127.0.0.1:{server.ports.http}"
        for form in ("raw", "stats", "png"):
            answer = httpx.post(f"{url}/v2/models/bands/segment?format={form}", content=GOOD)
            assert answer.status_code in (500, 503)
        data = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 4, 6, 3],
                            "data": [9] * 72}]}  # fmt: skip
        assert httpx.post(f"{url}/v2/models/bands/infer", json=data).status_code in (500, 503)
