"""The execution providers that a model is opened with on a GPU, and their options.

Defaults are for static shapes and few batch sizes: CUDA graphs, cuDNN's heuristics (a search would
run again for every batch size, at every start), TensorRT engines kept between starts. What
``config.pbtxt`` says goes before them.

Source: ONNX Runtime, "CUDA Execution Provider" and "TensorRT Execution Provider".
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from serving.engine import EngineSpec
from serving.engines.acceleration import CPU as ON_CPU
from serving.engines.acceleration import GPU, Acceleration
from serving.engines.graph import CHANNELS, INPUT
from serving.engines.onnxruntime import CPU, CUDA, TENSORRT, Provider
from serving.errors import InvalidModel
from serving.settings import cache_folder

CUDA_DEFAULTS = {
    "cudnn_conv_algo_search": "HEURISTIC",
    "cudnn_conv_use_max_workspace": "1",
    "do_copy_in_default_stream": "1",
    "enable_cuda_graph": "1",
    # Of what the arena takes, nothing comes back: no more than a run needs.
    "arena_extend_strategy": "kSameAsRequested",
}
TENSORRT_DEFAULTS = {
    "trt_engine_cache_enable": "1",
    "trt_timing_cache_enable": "1",
    "trt_cuda_graph_enable": "1",
}


def wants_gpu(where: Path, acceleration: Acceleration) -> bool:
    """Returns whether a model is to run on a GPU: where it says so, or leaves it open and one is
    there.

    Raises:
        InvalidModel: it says so, and this ONNX Runtime cannot.
    """
    if acceleration.device == ON_CPU:
        return False
    present = onnxruntime.get_available_providers()
    if CUDA not in present and acceleration.device == GPU:
        raise InvalidModel(
            f"{where}: instance_group.kind is KIND_GPU, but this ONNX Runtime has only "
            f"{', '.join(present)}; install onnxruntime-gpu instead of onnxruntime, or take "
            f"KIND_CPU or KIND_AUTO"
        )
    if acceleration.tensorrt is not None and CUDA in present and TENSORRT not in present:
        raise InvalidModel(
            f"{where}: gpu_execution_accelerator tensorrt is not in this ONNX Runtime, which has "
            f"{', '.join(present)}"
        )
    return CUDA in present


def gpu_providers(
    acceleration: Acceleration, spec: EngineSpec, gpu: int, stream: int, cache: Path | None = None
) -> list[Provider]:
    """Returns the providers with their options: TensorRT where configured, then CUDA and the CPU.

    Args:
        spec: of the graph; its sizes bound TensorRT's shapes.
        stream: the CUDA stream that copies and kernels are to share, as a number.
        cache: where TensorRT's engines are kept; the user's own folder unless given.
    """
    place = {
        "device_id": str(gpu),
        "has_user_compute_stream": "1",
        "user_compute_stream": str(stream),
    }
    cuda: Provider = (CUDA, {**CUDA_DEFAULTS, **acceleration.cuda, **place})
    providers: list[Provider] = [cuda, (CPU, {})]
    if acceleration.tensorrt is not None:
        kept = str(cache or tensorrt_cache())
        options = {
            **TENSORRT_DEFAULTS,
            **({"trt_fp16_enable": "1"} if spec.precision == "fp16" else {}),
            **({"trt_int8_enable": "1"} if spec.precision == "int8" else {}),
            **_profile_shapes(spec),
            "trt_engine_cache_path": kept,
            "trt_timing_cache_path": kept,
            **acceleration.tensorrt,
            **place,
        }
        # What TensorRT leaves to CUDA is not a whole graph: nothing to capture there.
        rest: Provider = (CUDA, {**cuda[1], "enable_cuda_graph": "0"})
        providers = [(TENSORRT, options), rest, (CPU, {})]
    return providers


def without_cuda_graphs(providers: list[Provider]) -> list[Provider]:
    """Returns the same providers, launching kernel after kernel: for graphs with nodes off the
    GPU."""
    switches = ("enable_cuda_graph", "trt_cuda_graph_enable")
    return [
        (name, {key: "0" if key in switches else value for key, value in options.items()})
        for name, options in providers
    ]


def has_cuda_graphs(providers: list[Provider]) -> bool:
    """Returns whether the first of the providers captures its runs."""
    _, options = providers[0]
    switches = (options.get("enable_cuda_graph"), options.get("trt_cuda_graph_enable"))
    return any(value in ("1", "true", "True") for value in switches)


def tensorrt_cache() -> Path:
    """Returns where built engines are kept."""
    return cache_folder() / "tensorrt"


def _profile_shapes(spec: EngineSpec) -> dict[str, str]:
    """Returns one engine for batches of 1 to the largest, made fastest for the largest."""

    def shape(n: int) -> str:
        return f"{INPUT}:{n}x{spec.size.height}x{spec.size.width}x{CHANNELS}"

    return {
        "trt_profile_min_shapes": shape(1),
        "trt_profile_opt_shapes": shape(spec.max_batch_size),
        "trt_profile_max_shapes": shape(spec.max_batch_size),
    }
