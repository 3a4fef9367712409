"""What ``config.pbtxt`` may say of ONNX Runtime, and which provider options come of it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serving.engine import EngineSpec
from serving.engines.acceleration import Acceleration, OpenVinoOptions, read_acceleration
from serving.engines.onnxruntime import CPU, CUDA, TENSORRT, session_options
from serving.engines.providers import (
    gpu_providers,
    has_cuda_graphs,
    tensorrt_cache,
    wants_gpu,
    without_cuda_graphs,
)
from serving.errors import InvalidModel
from serving.imaging.geometry import Size

WHERE = Path("icnet/config.pbtxt")


def read(text: str) -> Acceleration:
    return read_acceleration(WHERE, text_format.Parse(text, model_config_pb2.ModelConfig()))


def spec(precision: str = "fp16") -> EngineSpec:
    return EngineSpec(Size(1024, 2048), 19, Size(256, 512), 8, 2, precision)


def accelerator(name: str, **parameters: str) -> str:
    given = "".join(f'parameters {{ key: "{k}" value: "{v}" }}' for k, v in parameters.items())
    return (
        "optimization { execution_accelerators { gpu_execution_accelerator { "
        f'name: "{name}" {given} }} }} }}'
    )


def on_cpu(name: str, **parameters: str) -> str:
    return accelerator(name, **parameters).replace("gpu_exec", "cpu_exec")


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def test_nothing_said_leaves_everything_to_the_engine() -> None:
    assert read("") == Acceleration()
    # Other parameters are segmentation's own.
    assert read(parameter("palette", "#000000")) == Acceleration()


def test_groups_name_the_device_of_each_instance() -> None:
    assert read("instance_group { kind: KIND_CPU count: 2 }").device == "cpu"
    two = read("instance_group { kind: KIND_GPU count: 2 gpus: [0, 1] }")
    assert (two.device, two.gpus) == ("gpu", (0, 0, 1, 1))
    assert read("instance_group { count: 3 }").gpus == (0, 0, 0)
    with pytest.raises(InvalidModel, match="one kind for all groups"):
        read("instance_group { kind: KIND_CPU } instance_group { kind: KIND_GPU }")


@pytest.mark.parametrize(
    ("level", "name"), [(-1, "basic"), (0, "all"), (1, "extended"), (2, "none")]
)
def test_graph_levels_are_triton_s(level: int, name: str) -> None:
    found = read(f"optimization {{ graph {{ level: {level} }} }}")
    assert found.graph_level == name
    levels = {
        "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }
    assert session_options(found, 1, 1).graph_optimization_level == levels[name]


def test_tensorrt_keys_are_translated() -> None:
    found = read(
        accelerator(
            "tensorrt",
            precision_mode="FP16",
            max_workspace_size_bytes="1073741824",
            trt_engine_cache_path="/engines",
            trt_builder_optimization_level="5",
        )
    )
    assert found.tensorrt == {
        "trt_fp16_enable": "1",
        "trt_max_workspace_size": "1073741824",
        "trt_engine_cache_path": "/engines",
        "trt_builder_optimization_level": "5",
    }
    assert read(accelerator("tensorrt")).tensorrt == {}
    assert read(accelerator("cuda")).tensorrt is None


def test_cuda_options_in_both_places() -> None:
    older = read(parameter("cudnn_conv_algo_search", "0") + parameter("gpu_mem_limit", "4096"))
    assert older.cuda == {"cudnn_conv_algo_search": "EXHAUSTIVE", "gpu_mem_limit": "4096"}
    both = read(parameter("cudnn_conv_algo_search", "2") + accelerator(
        "cuda", cudnn_conv_algo_search="EXHAUSTIVE", prefer_nhwc="1"
    ))  # fmt: skip
    assert both.cuda == {"cudnn_conv_algo_search": "EXHAUSTIVE", "prefer_nhwc": "1"}


def test_threads_and_memory_of_a_session() -> None:
    found = read(
        parameter("intra_op_thread_count", "3")
        + parameter("inter_op_thread_count", "2")
        + parameter("execution_mode", "1")
        + parameter("enable_mem_arena", "false")
        + parameter("enable_mem_pattern", "0")
    )
    options = session_options(found, 2, 8)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    shared = session_options(Acceleration(), 2, 8)
    assert (shared.intra_op_num_threads, shared.enable_cpu_mem_arena) == (4, True)
    assert shared.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    alone = session_options(Acceleration(), 1, 8)
    assert alone.get_session_config_entry("session.intra_op.spin_duration_us") == "50"


def test_pinned_memory_can_be_switched_off() -> None:
    assert not read("optimization { output_pinned_memory { enable: false } }").pinned
    assert read("optimization { input_pinned_memory { enable: true } }").pinned


def test_the_engine_of_cpus_is_named_as_for_triton_or_by_a_parameter() -> None:
    assert (read("").cpu_engine, read("").openvino) == ("auto", OpenVinoOptions())
    assert read(on_cpu("openvino")) == Acceleration(cpu_engine="openvino")
    given = {"precision": "BF16", "streams": "2", "threads": "8", "device": "gpu"}
    asked = read(on_cpu("openvino", **given))
    assert asked.openvino == OpenVinoOptions("GPU", "bf16", 2, 8)
    # OpenVINO's own name of it.
    assert read(on_cpu("openvino", precision="f32")).openvino.precision == "fp32"
    for engine in ("auto", "onnxruntime", "openvino"):
        assert read(parameter("cpu_engine", engine)).cpu_engine == engine
    both = on_cpu("openvino") + parameter("cpu_engine", "auto")
    assert read(both).cpu_engine == "openvino"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimization { cuda { graphs: true } }", r"optimization\.cuda; .*enable_cuda_graph"),
        ("optimization { eager_batching: true }", r"optimization\.eager_batching"),
        ("optimization { priority: PRIORITY_MAX }", r"optimization\.priority"),
        ("optimization { graph { level: 7 } }", r"graph\.level is 7"),
        (accelerator("migraphx"), "'migraphx' is not supported; known: cuda, tensorrt"),
        (accelerator("cuda", user_compute_stream="1"), "not supported: user_compute_stream"),
        (accelerator("cuda", typo="1"), "not supported: typo"),
        (accelerator("tensorrt", trt_new="1", precision_mode="FP16"), "not supported: trt_new"),
        (accelerator("tensorrt", precision_mode="FP8"), "precision_mode 'FP8'"),
        (on_cpu("dnnl"), "cpu_execution_accelerator 'dnnl' is not supported; known: openvino"),
        (on_cpu("openvino", typo="1"), "openvino: not supported: typo; known: device, precision"),
        (on_cpu("openvino", precision="fp8"), "precision is 'fp8'; expected auto, fp32, bf16"),
        (on_cpu("openvino", device="NPU"), "device is 'NPU'; expected CPU, or GPU"),
        (on_cpu("openvino", streams="two"), "streams is 'two', not a number of threads"),
        (on_cpu("openvino", threads="-1"), "threads is '-1', not a number of threads"),
        (parameter("cpu_engine", "fast"), "cpu_engine is 'fast'; expected auto, onnxruntime"),
        (on_cpu("openvino") + parameter("cpu_engine", "onnxruntime"), "remove one of them"),
        (parameter("cudnn_conv_algo_search", "9"), r"'9'; known: 0 \(EXHAUSTIVE\)"),
        (parameter("intra_op_thread_count", "many"), "not a number of threads"),
        (parameter("enable_mem_arena", "perhaps"), "enable_mem_arena is 'perhaps'"),
        (parameter("share_session_between_instances", "true"), "share_session_between_instances"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(InvalidModel, match=message) as error:
        read(text)
    assert str(error.value).startswith(str(WHERE))


def test_cuda_is_opened_for_graphs_and_static_shapes() -> None:
    providers = gpu_providers(Acceleration(cuda={"prefer_nhwc": "1"}), spec(), 3, 0xBEEF)
    assert [name for name, _ in providers] == [CUDA, CPU]
    options = providers[0][1]
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["enable_cuda_graph"] == "1"
    assert options["prefer_nhwc"] == "1"
    assert (options["device_id"], options["user_compute_stream"]) == ("3", str(0xBEEF))
    assert has_cuda_graphs(providers)
    plain = without_cuda_graphs(providers)
    assert plain[0][1] == {**options, "enable_cuda_graph": "0"}
    assert not has_cuda_graphs(plain)
    searched = gpu_providers(
        Acceleration(cuda={"cudnn_conv_algo_search": "EXHAUSTIVE"}), spec(), 0, 1
    )
    assert searched[0][1]["cudnn_conv_algo_search"] == "EXHAUSTIVE"


def test_tensorrt_keeps_its_engines_and_knows_the_shapes(tmp_path: Path) -> None:
    asked = Acceleration(tensorrt={"trt_builder_optimization_level": "5"})
    providers = gpu_providers(asked, spec(), 0, 1, tmp_path)
    assert [name for name, _ in providers] == [TENSORRT, CUDA, CPU]
    options = providers[0][1]
    assert options["trt_fp16_enable"] == "1"
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(tmp_path)
    assert options["trt_profile_min_shapes"] == "image:1x1024x2048x3"
    assert options["trt_profile_max_shapes"] == "image:8x1024x2048x3"
    assert options["trt_builder_optimization_level"] == "5"
    # The graph is captured by TensorRT, not by what it leaves to CUDA.
    assert providers[1][1]["enable_cuda_graph"] == "0"
    assert has_cuda_graphs(providers)
    assert not has_cuda_graphs(without_cuda_graphs(providers))
    assert "trt_fp16_enable" not in gpu_providers(asked, spec("fp32"), 0, 1)[0][1]
    assert gpu_providers(asked, spec("int8"), 0, 1)[0][1]["trt_int8_enable"] == "1"


def test_the_cache_lies_in_the_user_s_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSERVE_CACHE_DIR", "/cache")
    assert tensorrt_cache() == Path("/cache/tensorrt")
    monkeypatch.delenv("SEGSERVE_CACHE_DIR")
    assert tensorrt_cache() == Path.home() / ".cache" / "segserve" / "tensorrt"


def test_which_device_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    present = [CPU]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: present)
    assert not wants_gpu(WHERE, Acceleration())
    assert not wants_gpu(WHERE, Acceleration(device="cpu"))
    with pytest.raises(InvalidModel, match=r"KIND_GPU.*install onnxruntime-gpu"):
        wants_gpu(WHERE, Acceleration(device="gpu"))
    present.insert(0, CUDA)
    assert wants_gpu(WHERE, Acceleration())
    assert not wants_gpu(WHERE, Acceleration(device="cpu"))
    with pytest.raises(InvalidModel, match="tensorrt is not in this ONNX Runtime"):
        wants_gpu(WHERE, Acceleration(tensorrt={}))
    present.insert(0, TENSORRT)
    assert wants_gpu(WHERE, Acceleration(tensorrt={}))
