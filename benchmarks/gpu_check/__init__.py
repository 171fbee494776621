"""Everything that only a GPU can show, in one process and under 570 seconds.

    python -m benchmarks.gpu_check [section ...]
    DEV=cpu python -m benchmarks.gpu_check        the same on the CPU, small: a dry run

It has never run on a GPU. Needs torch and, for the model, transformers; no network, and
none of datasets, trl, math-verify. Builds rap._C first where it is missing or has no device
code (nvcc on PATH; any setuptools). Writes a JSON line for each number to
$OUT/gpu_check.jsonl and one table at the end; ends with status 1 if a check failed or a
section broke.
"""
