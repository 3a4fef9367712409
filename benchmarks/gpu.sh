#!/usr/bin/env bash
# t_gpu of ICNet-ResNet50 and PSPNet-ResNet101 at 1024x2048 in fp16, every way that this project can
# run them, and which nodes left the device. One command on a machine with an NVIDIA GPU:
#
#   benchmarks/gpu.sh                        # sets up, checks, measures: about twenty minutes
#   COMMIT=1 benchmarks/gpu.sh               # and commits benchmarks/results/gpu_*.json
#   benchmarks/gpu.sh --precision fp16,fp32 --ways cuda-nhwc,torch --batches 1,4,16
#
# Where nvidia-smi finds a GPU, an environment of its own is made once, in .cache/gpu, with
# onnxruntime-gpu, and with what EXTRA names: 'torch' unless set, for --ways torch;
# EXTRA='torch tensorrt-cu12' for --ways tensorrt too. ORT_GPU names another ONNX Runtime, for example
# ORT_GPU='onnxruntime-gpu[cuda,cudnn]==1.22.*' for a driver of CUDA 12. Elsewhere it says that there
# is no CUDA provider and exits with 0.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
[ -x .venv/bin/python ] && python=.venv/bin/python
gpu=
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    gpu=1
    package=${ORT_GPU:-onnxruntime-gpu[cuda,cudnn]}
    read -ra extra <<<"${EXTRA:-torch}"
    wanted="$package ${extra[*]}"
    if [ "$(cat .cache/gpu/package 2>/dev/null)" != "$wanted" ]; then
        echo "setting up .cache/gpu with $wanted" >&2
        rm -rf .cache/gpu
        "$python" -m venv .cache/gpu
        pip=(.cache/gpu/bin/python -m pip --quiet --disable-pip-version-check)
        "${pip[@]}" install --editable . pytest pytest-asyncio pytest-timeout httpx matplotlib
        # Both packages hold the same folder: the one without CUDA has to go first.
        "${pip[@]}" uninstall --yes onnxruntime
        "${pip[@]}" install "$package" "${extra[@]}"
        echo "$wanted" >.cache/gpu/package
    fi
    python=.cache/gpu/bin/python
    # The engine first: a figure of what does not answer rightly is worth nothing.
    "$python" -m pytest -q tests/serving/engines/test_acceleration.py \
        tests/serving/engines/test_accelerated_engine.py tests/serving/engines/test_gpu.py
fi
"$python" -m benchmarks.gpu "$@"
if [ -n "$gpu" ] && [ -n "${COMMIT:-}" ]; then
    git add benchmarks/results/gpu_*.json
    git commit --quiet --message "Measured on $(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)" \
        -- benchmarks/results
fi
