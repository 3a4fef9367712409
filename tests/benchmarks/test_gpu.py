import json
import subprocess
from pathlib import Path

import onnx
import onnxruntime
import pytest

from benchmarks import gpu
from benchmarks.engines.node_profile import NodeProfile, NodeTime, profile_graph, read_profile
from benchmarks.engines.onnxruntime import OnnxSubject, check_provider
from benchmarks.engines.speed import PUBLISHED_TIMES, EnergyMeter, measure_speed
from benchmarks.engines.subject import Case, EngineMissing
from export.passes.build import build_model
from export.symbols.graph import Entry, Graph, Node
from export.symbols.params import random_params
from serving.engines.acceleration import Acceleration
from serving.engines.onnxruntime import CPU, CUDA

ROOT = Path(__file__).parents[2]
needs_no_cuda = pytest.mark.skipif(
    CUDA in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)


@pytest.fixture
def small_case(tmp_path):
    nodes = (
        Node("null", "data"),
        Node("null", "weight"),
        Node("Convolution", "conv", (Entry(0), Entry(1)),
             {"kernel": "(1, 1)", "num_filter": "4", "no_bias": "True", "stride": "(4, 4)"}),
    )  # fmt: skip
    graph = Graph(nodes, (Entry(2),))
    path = tmp_path / "model.onnx"
    onnx.save(build_model(graph, random_params(graph, 32, 48), 32, 48), str(path))
    return Case("small", None, 4, 32, 48, "fp32", 2, path)


@pytest.mark.parametrize(("output", "fetched"), [
    (None, "logits at 8x12, float32"), ("mask", "mask, uint8"),
])  # fmt: skip
def test_a_subject_on_the_cpu(small_case, output, fetched):
    case = Case(**{**vars(small_case), "output": output})
    subject = OnnxSubject(case, "cpu")
    speed = measure_speed(subject, case, 0.0, 1, "random")
    subject.compute()
    subject.close()
    assert (speed.engine, speed.fetched, speed.symbol) == ("onnxruntime-cpu", fetched, "t_cpu")
    assert (speed.runs, speed.batch, speed.size) == (3, 2, "32x48")
    assert 0 < speed.p50_ms <= speed.p95_ms <= speed.p99_ms
    assert speed.with_copies_ms == speed.per_image_ms
    assert speed.joules_per_image is None
    assert speed.machine.cores >= 1


def test_a_real_profile_with_bound_input_and_output(small_case):
    profile = profile_graph(small_case, "cpu", Acceleration())
    assert {node.provider for node in profile.nodes} == {CPU}
    assert "Conv" in {node.operator for node in profile.nodes}
    assert {node.runs for node in profile.nodes} == {3}
    assert profile.outside(CPU) == profile.copies() == ()
    assert profile.lines(CPU)[-1] == "no node and no copy fell back to the CPU"
    assert len(profile.outside(CUDA)) == len(profile.nodes)
    operators = dict(profile.slowest(100))
    assert sum(operators.values()) == pytest.approx(sum(n.microseconds for n in profile.nodes))


def test_what_gluoncv_published_stands_beside_it(small_case):
    case = Case(**{**vars(small_case), "title": "icnet_resnet50_citys"})
    subject = OnnxSubject(case, "cpu")
    speed = measure_speed(subject, case, 0.0, 1, "random")
    assert speed.published is None  # of another size
    published = PUBLISHED_TIMES[("icnet_resnet50_citys", "1024x2048")]
    told = "\n".join(type(speed)(**{**vars(speed), "published": published}).lines())
    assert "published: 36.9 ms" in told
    assert "without synchronisation" in told


def test_energy_is_read_where_the_driver_tells():
    class Driver:
        def nvmlInit_v2(self):  # noqa: N802
            return 0

        def nvmlDeviceGetHandleByIndex_v2(self, number, handle):  # noqa: N802
            return 0 if number == 1 else 2

        def nvmlDeviceGetTotalEnergyConsumption(self, handle, spent):  # noqa: N802
            spent._obj.value = 12_500
            return 0

    def missing(name):
        raise OSError(name)

    assert EnergyMeter(1, lambda name: Driver()).joules() == 12.5
    assert EnergyMeter(0, lambda name: Driver()).joules() is None
    assert EnergyMeter(0, missing).joules() is None


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


@pytest.mark.parametrize(("content", "message"), [("{}", "not a valid profile"), ("[]", "no node")])
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "profile.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_profile(path)


@needs_no_cuda
def test_without_cuda_it_says_so():
    with pytest.raises(EngineMissing, match="has only"):
        check_provider(CUDA)
    done = subprocess.run([ROOT / "benchmarks" / "gpu.sh"], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no CUDA provider here" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--ways", "tpu"], ["--size", "big"], ["--networks", "icnet"], ["--precision", "fp8"],
     ["--ways", ""], ["--batches", "0"], ["--outputs", "depth"]],
)  # fmt: skip
def test_wrong_options_end_with_2(arguments):
    from typer import Typer
    from typer.testing import CliRunner

    app = Typer()
    app.command()(gpu.gpu)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "error: " in done.output


def test_results_hold_the_command_and_every_node(tmp_path, small_case):
    subject = OnnxSubject(small_case, "cpu")
    speed = measure_speed(subject, small_case, 0.0, 1, "random")
    profile = profile_graph(small_case, "cpu", Acceleration())
    found = gpu.Measurement("cpu", speed, profile)
    machine = type(speed.machine)(
        **{**vars(speed.machine), "gpus": ("NVIDIA H200, 143771 MiB, 580.1",)}
    )
    path = gpu.write_results(tmp_path / "results", [found], {"torch": "not there"}, machine)
    assert path.name.startswith("gpu_nvidia_h200_")
    told = json.loads(path.read_text())
    assert told["machine"]["gpus"] == ["NVIDIA H200, 143771 MiB, 580.1"]
    assert told["left_out"] == {"torch": "not there"}
    (measurement,) = told["measurements"]
    assert measurement["speed"]["per_image_ms"] == speed.per_image_ms
    nodes = measurement["profile"]["nodes"]
    assert NodeProfile(tuple(NodeTime(**node) for node in nodes)) == profile
    assert any("t_cpu" in line for line in found.lines())
