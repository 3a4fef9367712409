"""Pages are filled from files alone, and what has no file stays."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.contest.measure import Row as Turn
from benchmarks.machine import read_machine, write_result
from benchmarks.scaling import curves
from benchmarks.studies.scaling_engine import Point, Setting
from benchmarks.studies.settings import Row
from benchmarks.tables import fill, plot_settings
from benchmarks.timing import Spread

PAGE = "a\n<!-- settings -->\nold\n<!-- end -->\nb\n<!-- scaling_server -->\nkept\n<!-- end -->\n"


def write_settings(folder: Path, precision: str, ratio: float) -> None:
    spread = Spread(ratio, ratio, ratio, 3)
    content = {
        "network": "icnet_resnet50", "precision": precision, "served_ms": spread,
        "served_cpu_ms": spread, "peak": {"ways": {"product": 100.0, "convolution": 200.0}},
        "share": {"gmacs": 10.0, "gmacs_per_second": 50.0, "share": 0.25},
        "rows": [Row("no memory arena", spread, spread, spread, spread)],
    }  # fmt: skip
    write_result(f"settings_icnet_resnet50_{precision}", content, read_machine(), folder)


def test_a_page_holds_what_was_measured(tmp_path: Path) -> None:
    assert fill(PAGE, tmp_path) == PAGE
    write_settings(tmp_path, "fp32", 1.5)
    write_settings(tmp_path, "int8", 0.5)
    page = fill(PAGE, tmp_path)
    assert "| other than what is served | ICNet-ResNet50 fp32 | ICNet-ResNet50 int8 |" in page
    assert "| no memory arena | 1.50 (1.50-1.50) | 0.50 (0.50-0.50) |" in page
    assert "\nold\n" not in page
    assert page.startswith("a\n<!-- settings -->\n")
    assert "\nb\n<!-- scaling_server -->\nkept\n" in page
    assert fill(page, tmp_path) == page
    peak = fill("<!-- peak -->\n<!-- end -->", tmp_path)
    assert "| 200 (convolution) | 25 % |" in peak
    assert plot_settings(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_points_become_rows(tmp_path: Path) -> None:
    spread = Spread(10.0, 9.0, 11.0, 5)
    made = {
        curve.name: [Point(s, spread, spread, 12.5, 20.0, 300.0, 45.0) for s in curve.settings]
        for curve in curves(Setting(), ["64x64"])
    }
    write_result("scaling_engine", {"curves": made}, read_machine(), tmp_path)
    page = fill("<!-- scaling_engine -->\n<!-- end -->", tmp_path)
    row = "| pixels, int8 | 64x64 | int8 | 19 | 1 | 1 x 2 | 10 (9-11) | 10 (9-11) |"
    assert row in page
    assert "scaling_engine.png" in page


def turn(contestant: str, load: str, number: int, throughput: float) -> Turn:
    return Turn(contestant, load, number, throughput, None, (200.0, 300.0), 0.5, 0.001, 340_000,
                79_000, 500.0, 400.0, 1.0, ())  # fmt: skip


def test_servers_become_rows(tmp_path: Path) -> None:
    rows = [
        turn("segserve-int8", "closed 1", 0, 6.0), turn("triton", "closed 1", 0, 1.5),
        turn("segserve-int8", "closed 1", 1, 6.6), turn("triton", "closed 1", 1, 1.5),
        replace(turn("triton", "open", 0, 0.4), server_cpu_s=0.042),
    ]  # fmt: skip
    runs = [{"command": "python peers.py icnet", "machine": asdict(read_machine())}] * 2
    content = {"runs": runs, "left_out": {}, "rows": rows, "subject": {"edges": None}}
    write_result("peers_icnet", content, read_machine(), tmp_path)
    page = fill("<!-- peers_icnet -->\n<!-- end -->\n<!-- peers_pspnet -->\n<!-- end -->", tmp_path)
    own = "| closed 1 | segserve int8 | 2 | 6.3 | **4.20** (4.10 to 4.30) | 0.25 | 0.30 | 0.30 "
    assert f"{own}| 0.50 + 0.001 | 500 |" in page
    # What answers as fast as it is asked has no ratio.
    assert "| open | Triton (Python-based backend) fp32 | 1 | 0.4 |  | 0.25 " in page
    assert "| 0.042 + 0.001 |" in page
    assert "peers_icnet.png" in page
    assert page.count("`python peers.py icnet`, ") == 1
    assert page.endswith("<!-- peers_pspnet -->\n<!-- end -->")


def test_overhead_becomes_columns(tmp_path: Path) -> None:
    spread = Spread(0.9412, 0.9386, 0.955, 5)
    keys = ("bare", "served", "share", "bare_cpu_s", "served_cpu_s")
    alone = dict.fromkeys(("engine", "restore", "request", "beyond"), Spread(8.7, 8.0, 9.9, 15))
    content = {"saturated": dict.fromkeys(keys, spread), "alone_ms": alone}
    marks = "<!-- overhead_icnet -->\n<!-- end -->"
    write_result("overhead_icnet_int8", content, read_machine(), tmp_path)
    assert fill(marks, tmp_path) == marks
    write_result("overhead_icnet_fp32", content, read_machine(), tmp_path)
    page = fill(marks, tmp_path)
    share = "**94.1 %** (93.9-95.5)"
    assert f"| share of the engine | {share} | {share} |" in page
    row = "8.7 (8-9.9)"
    assert f"| one caller: beyond engine and restore, ms | {row} | {row} |" in page
