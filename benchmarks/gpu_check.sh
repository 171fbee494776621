#!/bin/bash
# Everything that only a GPU can show, in one command and under 8 minutes.
# THIS SCRIPT HAS NEVER RUN ON A GPU: the machines it was written on have none.
#
#   benchmarks/gpu_check.sh [python]     python with torch for CUDA, pytest, numpy, nvcc on PATH
#
# Builds with RAP_CUDA=on, compares the device with the CPU path on every room and dtype,
# runs compute-sanitizer (memcheck, racecheck, synccheck, initcheck) on small shapes if it
# is installed, and times rap against torch eager, torch.topk, torch.sort (CUB) and, where
# they are installed, Liger and CCE (CUDA events, L2 flushed).
set -uo pipefail
cd "$(dirname "$0")/.."
PY=${1:-python3}
status=0

step() {
    local name=$1
    shift
    if "$@"; then echo "ok    $name"; else echo "FAIL  $name"; status=1; fi
}

step "build" env RAP_CUDA=on "$PY" setup.py -q build_ext --inplace
step "device" "$PY" -c 'import rap, torch; print(rap.info()["gpu"]); assert torch.cuda.is_available()'
step "values" timeout 120 "$PY" -m benchmarks.gpu_check values
step "scoring" timeout 90 "$PY" -m benchmarks.gpu_check scoring
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck synccheck initcheck; do
        step "$tool" timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            --kernel-regex kns=rap_ "$PY" -m benchmarks.gpu_check small
    done
else
    echo "skip  compute-sanitizer is not installed"
fi
step "times" timeout 120 "$PY" -m benchmarks.gpu_check times
exit $status
