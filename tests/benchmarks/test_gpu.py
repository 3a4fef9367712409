import json
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from benchmarks import gpu
from benchmarks.device_speed import CPU, CUDA, ProviderMissing, check_provider, measure_device
from benchmarks.node_profile import NodeProfile, NodeTime, read_profile
from export.build import build_model
from export.random_params import random_params
from export.symbol import Entry, Graph, Node
from serving.engines.cut import cut_graph

ROOT = Path(__file__).parents[2]
needs_no_cuda = pytest.mark.skipif(
    CUDA in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)


@pytest.fixture
def small_graph():
    nodes = (
        Node("null", "data"),
        Node("null", "weight"),
        Node("Convolution", "conv", (Entry(0), Entry(1)),
             {"kernel": "(1, 1)", "num_filter": "4", "no_bias": "True", "stride": "(4, 4)"}),
    )  # fmt: skip
    graph = Graph(nodes, (Entry(2),))
    return cut_graph(build_model(graph, random_params(graph, 32, 48), 32, 48), "logits")


def test_a_real_profile(small_graph):
    speed = measure_device(small_graph, CPU, {}, 0.0)
    assert speed.fetched == "logits"
    assert speed.runs == 3
    assert 0 < speed.p50_ms <= speed.p95_ms
    assert speed.with_copies_ms > 0
    profile = speed.profile
    assert {node.provider for node in profile.nodes} == {CPU}
    assert "Conv" in {node.operator for node in profile.nodes}
    assert {node.runs for node in profile.nodes} == {3}
    assert profile.outside(CPU) == profile.copies() == ()
    assert profile.lines(CPU)[-1] == "no node and no copy fell back to the CPU"
    assert len(profile.outside(CUDA)) == len(profile.nodes)
    operators = dict(profile.slowest(100))
    assert sum(operators.values()) == pytest.approx(sum(n.microseconds for n in profile.nodes))


def event(name, operator, provider, duration, category="Node"):
    return {"cat": category, "name": name, "dur": duration,
            "args": {"op_name": operator, "provider": provider}}  # fmt: skip


def test_what_fell_back_and_what_was_copied(tmp_path):
    events = [
        {"cat": "Session", "name": "model_run", "dur": 9},
        event("conv_fence_before", "Conv", CUDA, 1),
        event("conv_kernel_time", "Conv", CUDA, 10),
        event("conv_kernel_time", "Conv", CUDA, 30),
        event("Memcpy_token_0_kernel_time", "MemcpyToHost", CUDA, 5),
        event("labels_kernel_time", "ArgMax", CPU, 700),
        event("Memcpy_token_1_kernel_time", "MemcpyFromHost", CUDA, 6),
    ]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    profile = read_profile(path)
    assert profile.nodes[0] == NodeTime("conv", "Conv", CUDA, 2, 20.0)
    assert [node.name for node in profile.outside(CUDA)] == ["labels"]
    assert len(profile.copies()) == 2
    assert profile.lines(CUDA) == [
        "1 nodes on CUDAExecutionProvider",
        "FELL BACK to CPUExecutionProvider: ArgMax labels, 700 us",
        "COPY to the host: Memcpy_token_0, 5 us",
        "COPY to the device: Memcpy_token_1, 6 us",
    ]


@pytest.mark.parametrize(("content", "message"), [("{}", "no profile"), ("[]", "no node")])
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "profile.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_profile(path)


@needs_no_cuda
def test_without_cuda_it_says_so():
    with pytest.raises(ProviderMissing, match="has only"):
        check_provider(CUDA)
    done = subprocess.run([ROOT / "benchmarks" / "gpu.sh"], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no CUDA provider here" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--provider", "tpu"], ["--size", "big"], ["--networks", "icnet"], ["--precision", "fp8"],
     ["--layouts", ""]],
)  # fmt: skip
def test_wrong_options_end_with_2(arguments):
    done = subprocess.run([ROOT / "benchmarks" / "gpu.sh", *arguments], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_results_hold_the_command_and_every_node(tmp_path, small_graph, monkeypatch):
    monkeypatch.setattr(gpu, "describe_gpu", lambda: "NVIDIA H200, 580.1, 143771 MiB")
    monkeypatch.setattr("sys.argv", ["gpu", "--size", "32x48"])
    speed = measure_device(small_graph, CPU, {}, 0.0)
    found = gpu.Measurement("small", "32x48", "fp32", "nchw", speed)
    path = gpu.write_results(tmp_path / "results", [found])
    assert path.name.startswith("gpu_nvidia_h200_")
    told = json.loads(path.read_text())
    assert told["command"] == "benchmarks/gpu.sh --size 32x48"
    assert told["device"].startswith("NVIDIA H200, 580.1")
    (measurement,) = told["measurements"]
    assert measurement["speed"]["per_image_ms"] == speed.per_image_ms
    nodes = measurement["speed"]["profile"]["nodes"]
    assert NodeProfile(tuple(NodeTime(**node) for node in nodes)) == speed.profile
    assert any("t_cpu" in line for line in found.lines())
