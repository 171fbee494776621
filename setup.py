"""Builds rap._C: plain C11, the CPython limited API, NumPy's headers, nothing linked.

Switches, read from the environment:
  RAP_SANITIZE=1   AddressSanitizer and UBSan, -O1 -g (run under LD_PRELOAD of libasan)
  RAP_DEBUG=1      -O0 -g with assertions
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy
from setuptools import Extension, setup

ROOT = Path(__file__).parent
SOURCES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.c"))
HEADERS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.h"))

# -ffp-contract=off: the same bits from every compiler; a fused multiply-add is written
# where it is meant. The two -fno- flags let comparisons and rintf vectorise; neither
# changes a result.
COMPILE = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp-simd",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
]
LINK = ["-lm", "-lpthread"]

if os.environ.get("RAP_SANITIZE") == "1":
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    COMPILE += ["-O1", "-g", *sanitize]
    LINK += sanitize
if os.environ.get("RAP_DEBUG") == "1":
    COMPILE += ["-O0", "-g", "-UNDEBUG"]

setup(
    ext_modules=[
        Extension(
            "rap._C",
            sources=SOURCES,
            depends=HEADERS,
            include_dirs=["csrc", numpy.get_include()],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=COMPILE,
            extra_link_args=LINK,
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
