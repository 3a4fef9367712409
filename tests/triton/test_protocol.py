"""Our answers against a real Triton's for the same repository, field by field.

They may differ in what the table of docs/protocol.md lists, and must differ in all of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf import text_format
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc as oip_grpc
from tritonclient.grpc.model_config_pb2 import ModelConfig

from serving.settings import Settings
from serving.testing import ServerThread
from tests.support.protocol_answers import (
    Difference,
    Fields,
    ask_grpc,
    ask_http,
    differences,
    message_fields,
    read_differences,
    settled,
)
from tests.support.protocol_grpc_cases import GrpcCase, grpc_cases, infer_message
from tests.support.protocol_http_cases import HttpCase, http_cases
from tests.support.triton_server import install_triton, run_triton
from tests.support.waiting import wait_for

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Peer:
    """One of the two servers."""

    http: httpx.Client
    grpc: oip_grpc.GRPCInferenceServiceStub

    def ask(self, case: HttpCase | GrpcCase) -> Fields:
        if isinstance(case, HttpCase):
            return settled(lambda: ask_http(self.http, case))
        return settled(lambda: ask_grpc(self.grpc, case))


@pytest.fixture(scope="module")
def compared(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``icnet``, the same as ``twin``, and ``broken``, whose graph is none."""
    folder = tmp_path_factory.mktemp("compared")
    for name in ("icnet", "twin", "broken"):
        shutil.copytree(repository / "icnet", folder / name)
        path = folder / name / "config.pbtxt"
        config = text_format.Parse(path.read_text("utf-8"), ModelConfig())
        config.name = name
        config.dynamic_batching.max_queue_delay_microseconds = 0
        path.write_text(text_format.MessageToString(config, as_utf8=True), "utf-8")
    (folder / "broken" / "1" / "model.onnx").write_bytes(b"no graph")
    return folder


@pytest.fixture(scope="module")
def peers(compared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Peer, Peer]]:
    """Triton and ours, serving the same folder."""
    install_triton()
    log = tmp_path_factory.mktemp("log") / "triton.log"
    settings = Settings(
        repository=compared, http_port=0, grpc_port=0, metrics_port=0, drain_seconds=0.0,
        threads=2, enable_model_control=True, enable_shared_memory=True,
    )  # fmt: skip
    with (
        run_triton(compared, log, "--model-control-mode=explicit", "--load-model=*") as triton,
        ServerThread(settings) as server,
    ):
        ours = (f"127.0.0.1:{server.ports.http}", f"127.0.0.1:{server.ports.grpc}")
        opened = [_open(*address) for address in ((triton.http, triton.grpc), ours)]
        try:
            yield opened[0][0], opened[1][0]
        finally:
            for peer, channel in opened:
                peer.http.close()
                channel.close()


def _open(http: str, grpc_address: str) -> tuple[Peer, grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1)]
    channel = grpc.insecure_channel(grpc_address, options)
    client = httpx.Client(base_url=f"http://{http}", timeout=60)
    client.headers["Accept-Encoding"] = "identity"
    return Peer(client, oip_grpc.GRPCInferenceServiceStub(channel)), channel


def test_the_answers_differ_in_what_the_page_lists(
    peers: tuple[Peer, Peer], images: npt.NDArray[np.uint8]
) -> None:
    listed = read_differences(PAGE)
    assert len(listed) > 10
    triton, ours = peers
    found: list[Difference] = []
    cases = [*http_cases(images[:1]), *grpc_cases(images[:1])]
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        found += differences(case.name, triton.ask(case), ours.ask(case), case.names)
    found += _streamed(triton, ours, images[:1])
    unlisted = [d for d in found if not any(row.holds(d) for row in listed)]
    unused = [row for row in listed if not any(row.holds(d) for d in found)]
    assert not unlisted, "\n".join(map(str, unlisted))
    assert not unused, "\n".join(map(str, unused))


def _streamed(triton: Peer, ours: Peer, image: npt.NDArray[np.uint8]) -> list[Difference]:
    """The same stream to both: right ones, and each kind of mistake among them."""
    messages = [
        infer_message(image, id="a"),
        infer_message(image, "depth", id="b"),
        infer_message(image, model_name="nope", id="c"),
        infer_message(image, model_version="x", id="d"),
        infer_message(image, id="e"),
        infer_message(image),
    ]
    messages[4].parameters["triton_enable_empty_final_response"].bool_param = True
    answers = [
        [_stream_fields(answer) for answer in peer.grpc.ModelStreamInfer(iter(messages))]
        for peer in (triton, ours)
    ]
    assert len(answers[0]) == len(answers[1]) == len(messages)
    found = []
    for message, theirs, own in zip(messages, *answers, strict=True):
        found += differences(f"grpc stream {message.id}", theirs, own, ())
    return found


def _stream_fields(answer: oip.ModelStreamInferResponse) -> Fields:
    fields = message_fields(answer.infer_response)
    return {"error_message": answer.error_message, **fields}


def test_statistics_count_alike(peers: tuple[Peer, Peer], images: npt.NDArray[np.uint8]) -> None:
    shown = []
    for peer in peers:
        peer.grpc.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="twin"))
        for count in (1, 3, 1):
            peer.grpc.ModelInfer(infer_message(images[:count], model_name="twin"))
        with pytest.raises(grpc.RpcError):
            peer.grpc.ModelInfer(infer_message(images[:5], model_name="twin"))
        # Triton counts behind its answer.
        wait_for(lambda peer=peer: _counted(peer) == (5, 3))
        (http,) = peer.http.get("/v2/models/twin/stats").json()["model_stats"]
        (versioned,) = peer.http.get("/v2/models/twin/versions/1/stats").json()["model_stats"]
        everything = peer.http.get("/v2/models/stats").json()["model_stats"]
        assert versioned == http
        assert http in everything
        request = oip.ModelStatisticsRequest(name="twin")
        (called,) = peer.grpc.ModelStatistics(request).model_stats
        shown.append((_counts(http), _counts(message_fields(called)), len(everything)))
    assert shown[0] == shown[1]
    assert shown[0][0]["inference_count"] == 5


def _counted(peer: Peer) -> tuple[int, int]:
    """Images and runs of ``twin``."""
    (stats,) = peer.http.get("/v2/models/twin/stats").json()["model_stats"]
    return stats["inference_count"], stats["execution_count"]


def _counts(value: object) -> object:
    """All but the durations; of the last inference, whether there was one."""
    if isinstance(value, dict):
        return {
            key: int(item) > 0 if key == "last_inference" else _counts(item)
            for key, item in value.items()
            if key.rpartition(".")[2] != "ns"
        }
    return [_counts(item) for item in value] if isinstance(value, list) else value
