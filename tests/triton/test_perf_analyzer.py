"""perf_analyzer 2.51, unchanged, against this server: both protocols, stream, shared memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.band_model import write_model
from tests.support.open_server import OpenServer, run_open_server
from tests.support.perf_analyzer import run_perf_analyzer
from tests.support.triton_server import install_triton

pytestmark = pytest.mark.slow
# Of mask, confidence and logits together: 32 * 48 * (1 + 1 + 8 * 4) bytes.
OUTPUT_BYTES = str(32 * 48 * 34)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenServer]:
    install_triton()  # its wheel holds the libraries
    folder = tmp_path_factory.mktemp("repository")
    write_model(folder)
    with run_open_server(folder) as server:
        yield server


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("http", ("-b", "2")),
        ("grpc", ("--concurrency-range", "3")),
        ("grpc", ("--streaming",)),
        ("http", ("--shared-memory", "system", "--output-shared-memory-size", OUTPUT_BYTES)),
        ("grpc", ("--shared-memory", "system", "--output-shared-memory-size", OUTPUT_BYTES)),
    ],
    ids=["http", "grpc", "stream", "http shared memory", "grpc shared memory"],
)
def test_it_measures(
    opened: OpenServer, tmp_path: Path, protocol: str, options: tuple[str, ...]
) -> None:
    before = opened.server.registry.get("bands").statistics.inference_count
    row = run_perf_analyzer(
        "-m", "bands", "-i", protocol, "-u", opened.address(protocol), *options,
        table=tmp_path / "table.csv",
    )  # fmt: skip
    assert float(row["Inferences/Second"]) > 0
    # From our statistics: what it counts as the server's share is there.
    assert float(row["Server Compute Infer"]) > 0
    assert opened.server.registry.get("bands").statistics.inference_count > before + 10
    assert opened.server.dataplane.memory.status("") == []
