#!/bin/bash
# Everything that only a GPU can show, in one command and under 8 minutes.
# THIS SCRIPT HAS NEVER RUN ON A GPU: the machines it was written on have none.
#
#   benchmarks/gpu_check.sh [python]     python with torch for CUDA, pytest, numpy, nvcc on PATH
#
# Builds with RAP_CUDA=on, compares the device with the CPU path on every room, dtype and
# option, scores with a model on the GPU, runs compute-sanitizer (memcheck, racecheck,
# synccheck, initcheck) on small shapes if it is installed, and times rap against torch
# eager, torch.topk, torch.sort (CUB) and, where they are installed, Liger and CCE (CUDA
# events, L2 flushed).
set -uo pipefail
cd "$(dirname "$0")/.."
PY=${1:-python3}
status=0

# step NAME SECONDS COMMAND...: within its own limit and 470 s of everything
step() {
    local name=$1 limit=$2 left=$((470 - SECONDS))
    shift 2
    if [ "$left" -lt 5 ]; then
        echo "LATE  $name: no time left for it"
        status=1
    elif timeout "$((left < limit ? left : limit))" "$@"; then
        echo "ok    $name"
    else
        echo "FAIL  $name"
        status=1
    fi
}

step "build" 150 env RAP_CUDA=on "$PY" setup.py -q build_ext --inplace
step "device" 30 "$PY" -c 'import rap, torch; print(rap.info()["gpu"]); assert torch.cuda.is_available()'
step "values" 90 "$PY" -m benchmarks.gpu_check values
for name in cde linear_cde ace drm; do
    step "options of $name" 30 env RAP_OPTIONS_DEVICE=cuda PYTHONPATH=tests:. \
        "$PY" -m cuda_emulator.options "$name"
done
step "scoring" 60 "$PY" -m benchmarks.gpu_check scoring
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck synccheck initcheck; do
        # of initcheck all kernels: what cuBLASLt wrote must count as written
        only=(--kernel-regex kns=rap_)
        if [ "$tool" = initcheck ]; then only=(); fi
        step "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            "${only[@]}" "$PY" -m benchmarks.gpu_check small
    done
else
    echo "skip  compute-sanitizer is not installed"
fi
step "times" 90 "$PY" -m benchmarks.gpu_check times
exit $status
