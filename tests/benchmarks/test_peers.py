"""The comparison with other servers: real servers on a tiny network, and the arithmetic."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import typer
from PIL import Image

from benchmarks import peers
from benchmarks.contest import cases
from benchmarks.contest.cases import Case, Files, build_files
from benchmarks.contest.clients import count_bytes
from benchmarks.contest.contestants import CONTESTANTS, Setting
from benchmarks.contest.measure import Load, Row, answer_rate
from benchmarks.contest.plot import plot_summaries
from benchmarks.contest.processes import Unavailable, free_ports, has_environment, run_process
from benchmarks.contest.services.network import read_photo, write_mask
from benchmarks.contest.summary import Results, read_results, summarise, tables
from benchmarks.machine import read_machine, write_result
from benchmarks.studies.copies import write_small_model
from export.precision.half import widen
from serving.imaging.geometry import Size
from tests.support.triton_server import install_triton

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "model_repository" / "icnet"
SIZE = Size(64, 96)


def row(contestant: str, number: int, throughput: float, **changes: object) -> Row:
    made = Row(
        contestant, "closed 2", number, throughput, None, (100.0, 300.0), 1.5, 0.1,
        1000, 200, 500.0, 400.0, 1.0, (),
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture(scope="module")
def photo() -> bytes:
    patches = np.random.default_rng(5).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(patches).resize((SIZE.width, SIZE.height)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("shipped")
    write_small_model(folder, SIZE)
    return Case(
        "small", "one convolution", None, SIZE, SIZE, 0.3, 0.3, 20.0, shipped=folder / "net"
    )


@pytest.fixture(scope="module")
def files(case: Case, photo: bytes, tmp_path_factory: pytest.TempPathFactory) -> Files:
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setattr(cases, "cache_folder", lambda: cache)
        made = build_files(case, [photo], threads=1)
        assert build_files(case, [photo], threads=1) == made
        assert len(list((cache / "contest").iterdir())) == 1
        return made


def measure(names: str, case: Case, files: Files, photo: bytes, folder: Path) -> Results:
    kept = Results()
    setting = Setting(files, 1, folder)
    loads = [Load(1), Load(2), Load(None)]
    peers.measure_round(case, setting, [photo], peers.choose(names, ""), loads, 0, kept)
    return kept


@pytest.mark.slow
def test_servers_answer_the_same_mask_and_are_measured(
    case: Case, files: Files, photo: bytes, tmp_path: Path
) -> None:
    install_triton()
    names = "segserve-fp32,triton,segserve-triton,plain,mxnet,triton-rewritten"
    kept = measure(names, case, files, photo, tmp_path)
    assert kept.left_out == {
        "mxnet": "the shipped model has no MXNet files",
        "triton-rewritten": "the shipped graph has these rewrites already",
    }
    assert [(r.contestant, r.load) for r in kept.rows] == [
        (name, load) for name in names.split(",")[:4] for load in ("closed 1", "closed 2", "open")
    ]
    for found in kept.rows:
        assert found.errors == ()
        assert found.agreement > 0.999
        assert found.throughput > 0
        assert len(found.latencies_ms) > 1
        assert found.peak_rss_mib > 20
        assert found.pss_mib > 10
        assert found.server_cpu_s >= 0
        assert found.client_cpu_s > 0
    sent = {found.contestant: found.sent_bytes for found in kept.rows}
    back = {found.contestant: found.received_bytes for found in kept.rows}
    # Triton is sent pixels and gives class ids; the others are sent the file.
    assert sent["triton"] > 3 * SIZE.height * SIZE.width
    assert back["triton"] > SIZE.height * SIZE.width
    assert len(photo) < sent["segserve-fp32"] < len(photo) + 1000
    assert back["segserve-fp32"] < SIZE.height * SIZE.width


@pytest.mark.slow
@pytest.mark.parametrize("name", ["litserve", "mlserver"])
def test_servers_of_other_environments(
    name: str, case: Case, files: Files, photo: bytes, tmp_path: Path
) -> None:
    if not has_environment(name):
        pytest.skip(f"not installed; once: python benchmarks/peers.py tiny --only {name}")
    kept = measure(name, case, files, photo, tmp_path)
    assert kept.left_out == {}
    assert [found.errors for found in kept.rows] == [(), (), ()]
    assert min(found.agreement for found in kept.rows) > 0.999


def test_rounds_are_kept_summed_up_and_drawn(tmp_path: Path) -> None:
    rows = [
        row("segserve-int8", 0, 4.0), row("triton", 0, 1.0),
        row("segserve-int8", 1, 6.0, errors=("503",)), row("triton", 1, 2.0),
    ]  # fmt: skip
    path = tmp_path / "peers.json"
    content = {
        "rows": rows,
        "runs": [{"command": "once"}],
        "left_out": {"mxnet": "no"},
        "subject": {"edges": 0.5},
    }
    write_result("peers", content, read_machine(), tmp_path)
    kept = read_results(path)
    assert kept.rows == rows
    assert (kept.runs, kept.left_out) == ([{"command": "once"}], {"mxnet": "no"})
    assert kept.edges == 0.5
    ours, theirs = summarise(kept.rows)
    assert ours.throughput.median == 5.0
    assert ours.ratio is not None
    assert (ours.ratio.low, ours.ratio.median, ours.ratio.high) == (3.25, 3.5, 3.75)
    assert theirs.ratio is not None
    assert theirs.ratio.median == 1.0
    assert (ours.p50_ms, ours.answers, ours.errors) == (200.0, 4, ("503",))
    assert "| segserve int8 (503) | 5 (4.5-5.5) | 3.5 (3.25-3.75) | 0.20 |" in tables([ours])
    assert "Python-based backend" in tables([theirs])
    figure = plot_summaries("a network", [ours, theirs])
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["segserve int8", "Triton\n(Python-based backend) fp32"]
    assert read_results(tmp_path / "absent.json").rows == []


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([2.0, 4.0, 6.0, 8.0, 10.0, 12.0], 0.5),  # one by one, the last two asked for before
        ([8.0, 8.0, 8.0, 8.0, 16.0, 16.0, 16.0, 16.0], 0.5),  # four at once
        ([5.0], 0.2),
        ([], 0.0),
    ],
)
def test_throughput_is_that_of_the_work_however_it_is_ordered(
    ends: list[float], expected: float
) -> None:
    assert answer_rate(ends) == expected


async def test_bytes_are_counted_each_way() -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(2 * await reader.readexactly(500_000))
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    async with server, count_bytes(server.sockets[0].getsockname()[1]) as wire:
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        writer.write(b"x" * 500_000)
        assert len(await reader.read()) == 1_000_000
        writer.close()
    assert (wire.sent, wire.received) == (500_000, 1_000_000)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", "echo no such model; exit 3"]
    with (
        pytest.raises(Unavailable, match="no such model"),
        run_process(command, {}, lambda: False, tmp_path / "log"),
    ):
        pass
    assert len(set(free_ports(3))) == 3


def test_servers_end_with_a_benchmark_that_is_terminated(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from benchmarks.contest.processes import end_on_sigterm, run_process
end_on_sigterm()
with run_process(["/bin/sleep", "300"], {{}}, lambda: True, Path({str(tmp_path / "log")!r})) as pid:
    print(pid, flush=True)
    time.sleep(300)
"""
    benchmark = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with benchmark:
        assert benchmark.stdout is not None
        server = int(benchmark.stdout.readline())
        assert Path(f"/proc/{server}").exists()
        benchmark.terminate()
        assert benchmark.wait(60) == 143
    assert not Path(f"/proc/{server}").exists()


def test_photo_and_mask_in_other_sizes() -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 20), (10, 200, 30)).save(file, "PNG")
    pixels, own = read_photo(file.getvalue(), 10, 16)
    assert (pixels.shape, own) == ((1, 10, 16, 3), (40, 20))
    assert pixels[0, 5, 5].tolist() == [10, 200, 30]
    labels = np.repeat(np.arange(2, dtype=np.uint8), 5)[:, None].repeat(16, 1)
    mask = Image.open(io.BytesIO(write_mask(labels, bytes(range(6)).ljust(768, b"\0"), own)))
    assert (mask.mode, mask.size) == ("P", (40, 20))
    assert np.asarray(mask)[:, 0].tolist() == [0] * 10 + [1] * 10
    assert mask.convert("RGB").getpixel((0, 19)) == (3, 4, 5)


def test_edges_of_a_label_map(tmp_path: Path) -> None:
    labels = np.zeros((5, 5), np.uint8)
    labels[2:, :] = 1
    Image.fromarray(labels).save(tmp_path / "map.png")
    assert peers.count_edges(tmp_path / "map.png") == 0.25


def test_halves_become_floats() -> None:
    if not SHIPPED.is_dir():
        pytest.skip("no model is shipped")
    (version,) = (path for path in SHIPPED.iterdir() if path.name.isdigit())
    half = onnx.load(str(version / "model.onnx"))
    wide = widen(half)
    assert all(t.data_type != onnx.TensorProto.FLOAT16 for t in wide.graph.initializer)
    shape = [d.dim_value for d in half.graph.input[0].type.tensor_type.shape.dim][1:]
    pixels = np.random.default_rng(2).integers(0, 256, (1, *shape), dtype=np.uint8)
    before, after = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(
            ["logits", "mask"], {"image": pixels}
        )
        for m in (half, wide)
    )
    assert np.abs(before[0] - after[0]).max() < 0.01 * np.abs(before[0]).max()
    assert (before[1] == after[1]).mean() > 0.999


def test_names_that_are_not_known() -> None:
    assert peers.choose("", "") == list(CONTESTANTS)
    assert [c.name for c in peers.choose("triton,plain", "plain")] == ["triton"]
    with pytest.raises(typer.BadParameter, match="trito"):
        peers.choose("trito", "")


def test_the_written_summary_is_json(tmp_path: Path) -> None:
    content = {"summaries": summarise([row("triton", 0, 1.0)])}
    path = write_result("peers", content, read_machine(), tmp_path)
    (summary,) = json.loads(path.read_text())["summaries"]
    assert summary["title"] == "Triton (Python-based backend) fp32"
    assert summary["ratio"]["median"] == 1.0
