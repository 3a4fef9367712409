#!/usr/bin/env bash
# Measures everything that docs/performance.md and docs/scaling.md show, and fills their tables and
# pictures. On a quiet machine: half an hour on 2 cores, each step under six minutes. Names of steps
# as arguments run these alone:
#
#   benchmarks/cpu.sh
#   benchmarks/cpu.sh icnet-int8 guard
#
# RUN stands before each measuring command, for example RUN='taskset -c 0,1'.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
[ -x .venv/bin/python ] && python=.venv/bin/python
read -ra run <<<"${RUN:-} $python -m"

measure() {
    case $1 in
    icnet-int8) "${run[@]}" benchmarks.studies.settings icnet_resnet50 --precision int8 ;;
    icnet-fp32) "${run[@]}" benchmarks.studies.settings icnet_resnet50 --precision fp32 ;;
    pspnet-int8)
        "${run[@]}" benchmarks.studies.settings pspnet_resnet50 --precision int8 --turns 3 \
            --only plain,fp32,extended,spinning,arena,factor,pack
        ;;
    pspnet-fp32)
        "${run[@]}" benchmarks.studies.settings pspnet_resnet50 --precision fp32 --turns 3 \
            --only plain,factor,extended,winograd
        ;;
    winograd) "${run[@]}" benchmarks.studies.winograd ;;
    guard) "${run[@]}" benchmarks.guard --update ;;
    scaling-engine) "${run[@]}" benchmarks.scaling engine ;;
    scaling-server) "${run[@]}" benchmarks.scaling server ;;
    plots)
        "$python" -m benchmarks.scaling plot
        "$python" -m benchmarks.tables
        ;;
    *)
        echo "no step $1" >&2
        exit 2
        ;;
    esac
}

steps=("$@")
[ "${#steps[@]}" -gt 0 ] || steps=(icnet-int8 icnet-fp32 pspnet-int8 pspnet-fp32 winograd guard
    scaling-engine scaling-server plots)
for step in "${steps[@]}"; do
    echo "== $step" >&2
    measure "$step"
done
