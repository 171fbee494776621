"""What rap would compute with here, and why: ``rap.info()``."""

from __future__ import annotations

import glob
import os
import platform

from . import _C
from .cuda import INSTALL, open_cublaslt
from .errors import RapConfigError
from .installed import version
from .ops import default_threads

_OPTIONAL = ("torch", "transformers", "datasets", "trl", "math-verify", "pillow", "jinja2")


def _threads_source() -> str:
    if os.environ.get("RAP_NUM_THREADS"):
        return "RAP_NUM_THREADS"
    return "torch's own number if torch is loaded, else the processors of this process"


def _version_text(number: int) -> str:
    """12040, as CUDA counts, is 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _has_gpu() -> bool:
    """Whether the system shows an NVIDIA GPU, without asking its driver."""
    return any(map(glob.glob, ("/proc/driver/nvidia/gpus/*", "/dev/nvidia[0-9]*")))


def _gpu() -> str:
    """One sentence: what CUDA would compute with, or why it cannot."""
    cuda = _C.cuda_info()
    if cuda["error"]:
        advice = ""
        if not cuda["kernels"] and _has_gpu():
            advice = f". This machine has a GPU: {INSTALL}"
        return f"arrays are computed on the CPU: {cuda['error']}{advice}"
    try:
        blas = f"cuBLASLt {open_cublaslt()}"
    except RapConfigError as error:
        blas = str(error)
    return (
        f"kernels of {', '.join(cuda['kernels'])} ({cuda['made']}) on "
        f"{', '.join(cuda['devices'])}; driver for CUDA {_version_text(cuda['driver'])}; "
        f"{blas}"
    )


def info() -> dict[str, object]:
    """What was chosen and why: versions, instruction set per kernel, threads, GPU.

    A missing optional library is a sentence here and an error only when it is needed.
    """
    isa = _C.isa()
    return {
        "rap": version("rap-select"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "isa": {kernel: isa for kernel in ("cde", "linear_cde", "ace", "drm")},
        "isa_available": _C.isa_names(),
        "isa_source": "RAP_ISA"
        if os.environ.get("RAP_ISA")
        else "best of what this CPU has",
        "threads": default_threads(),
        "threads_source": _threads_source(),
        "gpu": _gpu(),
        "packages": {
            "numpy": version("numpy"),
            "pyarrow": version("pyarrow"),
            **{name: version(name) or "not installed" for name in _OPTIONAL},
        },
    }
