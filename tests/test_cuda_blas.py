"""Our few declarations of cuBLASLt against the real header and the real library.

Descriptors, layouts and preferences work without a GPU; products do not.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rap import _C

ROOT = Path(__file__).resolve().parent.parent
OURS = (ROOT / "csrc" / "gemm" / "gemm_cuda.c").read_text()
NAMES = {
    "OP_N": "CUBLAS_OP_N",
    "OP_T": "CUBLAS_OP_T",
    "R_32F": "CUDA_R_32F",
    "R_16F": "CUDA_R_16F",
    "R_16BF": "CUDA_R_16BF",
    "COMPUTE_32F": "CUBLAS_COMPUTE_32F",
    "STATUS_ALLOC_FAILED": "CUBLAS_STATUS_ALLOC_FAILED",
    "STATUS_NOT_SUPPORTED": "CUBLAS_STATUS_NOT_SUPPORTED",
    "REDUCTION_COMPUTE_TYPE": "CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE",
    "REDUCTION_OUTPUT_TYPE": "CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE",
}
PREFIXES = {
    "DESC_": "CUBLASLT_MATMUL_DESC_",
    "LAYOUT_": "CUBLASLT_MATRIX_LAYOUT_",
    "PREF_": "CUBLASLT_MATMUL_PREF_",
}


def constants() -> dict[str, int]:
    text = OURS.split("enum {")[1].split("};")[0]
    return {name: int(value) for name, value in re.findall(r"(\w+) = (\d+)", text)}


def real_name(name: str) -> str:
    for ours, theirs in PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return NAMES[name]


def nvidia(*parts: str) -> Path:
    """A file of NVIDIA's wheels, which torch for CUDA brings."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for found in sorted(Path(folder).glob("/".join(("*", *parts)))):
            return found
    pytest.skip(f"NVIDIA's wheels with {parts[-1]} are not installed")


def toolkit() -> Path:
    """CUDA's own folder: the wheels have not all headers that theirs include."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    folder = Path(nvcc).resolve().parent.parent
    for home in (Path(os.environ.get("CUDA_HOME", folder)), Path("/usr/local/cuda")):
        if (home / "include" / "crt").is_dir():
            return home
    pytest.skip("the headers of the CUDA toolkit are not installed")


def test_constants_and_structs_are_those_of_the_header(tmp_path):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    header = nvidia("include", "cublasLt.h")
    values = constants()
    assert len(values) == 20
    lines = [f'static_assert({real_name(n)} == {v}, "{n}");' for n, v in values.items()]
    lines += [
        'static_assert(sizeof(cublasLtMatmulAlgo_t) == 64, "algo");',
        "using result = cublasLtMatmulHeuristicResult_t;",
        'static_assert(sizeof(result) == 96, "result");',
        'static_assert(offsetof(result, workspaceSize) == 64, "workspace");',
        'static_assert(offsetof(result, state) == 72, "state");',
    ]
    unit = tmp_path / "check.cpp"
    unit.write_text("#include <cstddef>\n#include <cublasLt.h>\n" + "\n".join(lines))
    done = subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", f"-I{header.parent}",
         "-idirafter", f"{toolkit()}/include", str(unit)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:2000]


LIBRARY = """
import ctypes, sys
from rap import _C
version = _C.cublaslt(sys.argv[1])
assert version >= 120000, version
lt = ctypes.CDLL(sys.argv[1])
p = ctypes.c_void_p
desc, layout, pref = p(), p(), p()
assert lt.cublasLtMatmulDescCreate(ctypes.byref(desc), 68, 0) == 0
for attribute, value in ((3, 1), (4, 0)):
    v = ctypes.c_int(value)
    assert lt.cublasLtMatmulDescSetAttribute(desc, attribute, ctypes.byref(v), 4) == 0
for dtype in (0, 2, 14):
    assert lt.cublasLtMatrixLayoutCreate(
        ctypes.byref(layout), dtype, ctypes.c_uint64(64), ctypes.c_uint64(32),
        ctypes.c_int64(64)) == 0
    batch, stride = ctypes.c_int32(4), ctypes.c_int64(2048)
    assert lt.cublasLtMatrixLayoutSetAttribute(layout, 5, ctypes.byref(batch), 4) == 0
    assert lt.cublasLtMatrixLayoutSetAttribute(layout, 6, ctypes.byref(stride), 8) == 0
    assert lt.cublasLtMatrixLayoutDestroy(layout) == 0
assert lt.cublasLtMatmulPreferenceCreate(ctypes.byref(pref)) == 0
size = ctypes.c_uint64(32 << 20)
assert lt.cublasLtMatmulPreferenceSetAttribute(pref, 1, ctypes.byref(size), 8) == 0
for attribute in (3, 5, 6, 7, 8):
    v = ctypes.c_uint32(6 if attribute == 3 else 16)
    assert lt.cublasLtMatmulPreferenceSetAttribute(pref, attribute, ctypes.byref(v), 4) == 0
assert lt.cublasLtMatmulPreferenceDestroy(pref) == 0
assert lt.cublasLtMatmulDescDestroy(desc) == 0
"""


@pytest.mark.skipif(not _C.CUDA_KERNELS, reason="this build has no CUDA kernels")
def test_the_real_library_takes_what_we_set():
    """Types, sizes and numbers of every attribute, on the real library, without a GPU."""
    library = nvidia("lib", "libcublasLt.so.*")
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, str(library)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ctypes.sizeof(ctypes.c_size_t) == 8


def test_a_library_that_is_not_there_is_a_sentence():
    code = """
import rap
from rap import _C
try:
    _C.cublaslt()
except rap.RapConfigError as error:
    assert "RAP_LIBCUBLASLT" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={"RAP_LIBCUBLASLT": "/nowhere.so", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
