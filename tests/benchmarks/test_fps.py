import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.engines.graphs import built_graph
from benchmarks.timing import Timing, time_runs
from export.datasets import generic_labels
from export.passes.build import build_model
from export.repository.triton import ModelFacts, write_model
from export.symbols.find import PUBLISHED, NetworkName
from export.symbols.graph import Entry, Graph, Node
from export.symbols.params import random_params

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_fps(tmp_path):
    def run(*arguments):
        environment = {**os.environ, "SEGSERVE_CACHE_DIR": str(tmp_path / "cache")}
        return subprocess.run(
            [sys.executable, ROOT / "benchmarks" / "fps.py", *map(str, arguments)],
            capture_output=True, text=True, env=environment, check=False, cwd=tmp_path,
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_fps_of_icnet(run_fps, tmp_path):
    done = run_fps("--model", "icnet", "--size", "64x64", "--seconds", "0.1",
                   "--threads", "1", "--json", tmp_path / "fps.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "t_cpu" in done.stdout
    assert "random weights" in done.stdout
    assert "cut to logits at 16x16" in done.stdout
    numbers = json.loads((tmp_path / "fps.json").read_text())
    assert numbers["per_image_ms"] > 0
    assert numbers["fps"] == pytest.approx(1000 / numbers["per_image_ms"])
    assert numbers["p50_ms"] <= numbers["p95_ms"] <= numbers["p99_ms"]
    (kept,) = (tmp_path / "cache" / "graphs").iterdir()
    assert kept.name.startswith("icnet_resnet50_citys_19c_64x64_")


def test_fps_of_a_served_model(run_fps, tmp_path):
    nodes = (
        Node("null", "data"),
        Node("null", "weight"),
        Node("Convolution", "conv", (Entry(0), Entry(1)),
             {"kernel": "(1, 1)", "num_filter": "4", "no_bias": "True", "stride": "(4, 4)"}),
    )  # fmt: skip
    graph = Graph(nodes, (Entry(2),))
    model = build_model(graph, random_params(graph, 32, 48), 32, 48)
    facts = ModelFacts(generic_labels(4), "tiny", None, None, "a test")
    write_model(tmp_path / "models", "tiny", model, facts, None)
    done = run_fps("--model", "tiny", "--served", "--repository", tmp_path / "models",
                   "--seconds", "0", "--batch", "2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tiny, 32x48, batch 2, fp32, of " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "package"), [("torch", "torch"), ("mxnet", "mxnet")], ids=["torch", "mxnet"]
)
def test_fps_of_other_frameworks(run_fps, engine, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (extra 'training')")
    done = run_fps("--model", "icnet", "--size", "32x32", "--seconds", "0", "--threads", "1",
                   "--engine", engine, "--warmup", "1", "--output", "mask")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{engine}-" in done.stdout
    assert "graph cut to mask" in done.stdout
    assert "t_cpu" in done.stdout or "t_gpu" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "icnet", "--size", "100x100"], "96x96"),
        (["--model", "icnet", "--size", "tiny"], "HEIGHTxWIDTH"),
        (["--model", "absent", "--served"], "error"),
        (["--model", "icnet", "--dataset", "nowhere"], "nowhere"),
        (["--model", "icnet", "--engine", "tpu"], "one of auto, cpu, cuda"),
    ],
)
def test_errors_are_one_line(run_fps, arguments, message):
    done = run_fps(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_built_graph_is_kept_and_outdated_ones_go(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSERVE_CACHE_DIR", str(tmp_path))
    built = []

    def build(graph, parameters, height, width):
        built.append((height, width))
        nodes = (Node("null", "data"), Node("relu", "r", (Entry(0),)))
        return build_model(Graph(nodes, (Entry(1),)), parameters, height, width)

    monkeypatch.setattr("benchmarks.engines.graphs.build_model", build)
    network = NetworkName("icnet", "resnet50", 1.0, "citys")
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "icnet_resnet50_citys_19c_64x64_0123.onnx").write_bytes(b"old")
    first = built_graph(network, 19, 64, 64)
    assert built_graph(network, 19, 64, 64) == first
    assert built == [(64, 64)]
    assert list((tmp_path / "graphs").iterdir()) == [first]


def test_timing_counts_runs_after_warming():
    calls = []
    timing = time_runs(lambda: calls.append(None), seconds=0, warm_runs=2)
    assert len(calls) == 5
    assert len(timing.walls) == 3
    known = Timing(tuple(np.arange(1, 101) / 1000), cpus=(0.01,) * 100)
    assert known.wall_ms(50) == pytest.approx(50.5)
    assert known.total == pytest.approx(5.05)
    assert known.cpu == pytest.approx(1.0)


def test_published_symbols_are_what_the_networks_generate(tmp_path):
    import gzip

    for package in ("mxnet", "gluoncv"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extra 'training')")
    names = ("icnet_resnet50_citys", "pspnet_resnet50_citys")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.studies.generate_symbols", *names,
         "--output", str(tmp_path)],
        check=True, capture_output=True, cwd=ROOT,
    )  # fmt: skip
    for name in names:
        generated = (tmp_path / f"{name}.json.gz").read_bytes()
        published = (PUBLISHED / f"{name}.json.gz").read_bytes()
        assert gzip.decompress(generated) == gzip.decompress(published)
