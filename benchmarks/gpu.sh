#!/usr/bin/env bash
# t_gpu of ICNet-ResNet50 and PSPNet-ResNet101 at 1024x2048 in fp16, with ONNX Runtime's CUDA
# provider, and which nodes fell back to the CPU. One command on a machine with an NVIDIA GPU:
#
#   benchmarks/gpu.sh                       # about ten minutes, most of them the set-up
#   benchmarks/gpu.sh --precision fp16,fp32 --output mask
#
# Where nvidia-smi finds a GPU, an environment of its own with onnxruntime-gpu is made once, in
# .cache/gpu; ORT_GPU names another package, for example ORT_GPU='onnxruntime-gpu[cuda,cudnn]==1.22.*'
# for a driver of CUDA 12. Elsewhere it says that there is no CUDA provider and exits with 0.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
[ -x .venv/bin/python ] && python=.venv/bin/python
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    package=${ORT_GPU:-onnxruntime-gpu[cuda,cudnn]}
    if [ "$(cat .cache/gpu/package 2>/dev/null)" != "$package" ]; then
        echo "setting up .cache/gpu with $package" >&2
        rm -rf .cache/gpu
        "$python" -m venv .cache/gpu
        .cache/gpu/bin/python -m pip install --quiet --disable-pip-version-check --editable .
        # Both packages hold the same folder: the one without CUDA has to go first.
        .cache/gpu/bin/python -m pip uninstall --quiet --yes onnxruntime
        .cache/gpu/bin/python -m pip install --quiet --disable-pip-version-check "$package"
        echo "$package" >.cache/gpu/package
    fi
    python=.cache/gpu/bin/python
fi
exec "$python" -m benchmarks.gpu "$@"
