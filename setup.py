"""Builds rap._C: plain C11, the CPython limited API, NumPy's headers, nothing linked.

Device code (csrc/*/*_cuda.cu) becomes one fat binary a kernel module inside the extension
when nvcc 12.4 or newer is there (CUDA_HOME, PATH, /usr/local/cuda); else the build is for
the CPU only, and rap.info() says so.

Switches, read from the environment:
  RAP_CUDA=auto    device code if nvcc is found (default); on: must be found; off: none
  RAP_CUDA_ARCHITECTURES=90   for these GPUs only ("80 90"); PTX of the first for later ones
  RAP_SANITIZE=1   AddressSanitizer and UBSan, -O1 -g (run under LD_PRELOAD of libasan);
                   thread: ThreadSanitizer (libtsan)
  RAP_COVERAGE=1   counts of executed lines for gcov, -O1
  RAP_DEBUG=1      -O0 -g with assertions
  RAP_PORTABLE=1   for a wheel: symbols of old versions of glibc (csrc/glibc.h)
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

if sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise SystemExit(
        f"rap-select: this Python {sys.version.split()[0]} is free-threaded (PEP 703), for "
        "which rap._C cannot be built: it uses the stable ABI (abi3), and a free-threaded "
        "Python has none before 3.15 (PEP 803). Use the build of Python with the GIL"
    )

ROOT = Path(__file__).resolve().parent
SOURCES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.c"))
HEADERS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.h"))
DEVICE_CODE = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.cu"))

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
LINK = ["-lm", "-lpthread", "-ldl"]

GLIBC_H = ("linux-x86_64", "linux-aarch64")
SANITIZERS = {
    "1": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
if sanitize := SANITIZERS.get(os.environ.get("RAP_SANITIZE", "")):
    COMPILE += ["-O1", "-g", *sanitize]
    LINK += sanitize
if os.environ.get("RAP_COVERAGE") == "1":
    COMPILE += ["-O1", "--coverage", "-fprofile-update=atomic"]
    LINK += ["--coverage"]
if os.environ.get("RAP_DEBUG") == "1":
    COMPILE += ["-O0", "-g", "-UNDEBUG"]
# what is built for (_PYTHON_HOST_PLATFORM of a cross build), not what builds
if os.environ.get("RAP_PORTABLE") == "1" and sysconfig.get_platform() in GLIBC_H:
    COMPILE += ["-include", "csrc/glibc.h"]
    # where an older glibc has them; by name of the file, as newer ones have nothing to link
    LINK += ["-Wl,--no-as-needed", "-l:libpthread.so.0", "-l:libdl.so.2", "-Wl,--as-needed"]

# --- device code ------------------------------------------------------------------------

CUDA_BUILD = ROOT / "build" / "cuda"
OLDEST_NVCC = 12040
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
TENSOR_CORES = 80  # the least whose PTX holds what later devices multiply with
NVCC = ["-std=c++17", "-O3", "-fmad=false", "-Icsrc", "-Xfatbin", "-compress-all"]


def find_nvcc() -> tuple[str, int] | str:
    """(path, version as 12040) of an nvcc that can be used, or why there is none."""
    if os.environ.get("RAP_CUDA", "auto") == "off":
        return "built with RAP_CUDA=off"
    if not sys.platform.startswith("linux"):
        return "CUDA kernels are built on Linux only"
    home = os.environ.get("CUDA_HOME")
    places = [home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"]
    found = next(filter(None, map(shutil.which, filter(None, places))), None)
    if found is None:
        return "nvcc was not found when it was built"
    said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", said)
    version = int(match[1]) * 1000 + int(match[2]) * 10 if match else 0
    if version < OLDEST_NVCC:
        return f"{found} is older than CUDA 12.4"
    return found, version


def architectures(nvcc: str) -> list[int]:
    """Those of ARCHITECTURES, or of RAP_CUDA_ARCHITECTURES, that this nvcc knows."""
    done = subprocess.run(
        [nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True
    )
    known = {int(n) for n in re.findall(r"sm_(\d+)\b", done.stdout)}
    asked = os.environ.get("RAP_CUDA_ARCHITECTURES", "").split()
    found = [arch for arch in map(int, asked or ARCHITECTURES) if arch in known]
    if not found:
        raise SystemExit(f"{nvcc} knows none of {asked or ARCHITECTURES}")
    return found


def with_includes(sources: list[Path]) -> list[Path]:
    """The sources and every file of csrc/ that they include, at any depth, in order."""
    found: dict[Path, None] = dict.fromkeys(sources)
    queue = list(sources)
    while queue:
        path = queue.pop(0)
        for name in re.findall(r'^\s*#include "([^"]+)"', path.read_text(), re.M):
            included = (path.parent / name).resolve()
            if included.is_file() and included not in found:
                found[included] = None
                queue.append(included)
    return list(found)


def compile_fatbins(nvcc: str, archs: list[int], sources: list[Path]) -> None:
    """One call of nvcc for all modules and architectures; nothing if nothing changed."""
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    ptx = min((a for a in archs if a >= TENSOR_CORES), default=archs[0])
    codes.append(f"-gencode=arch=compute_{ptx},code=compute_{ptx}")
    flags = [*NVCC, *codes]
    names = [str(p.relative_to(ROOT)) for p in sources]  # any clone's are as good
    text = b"\0".join(p.read_bytes() for p in with_includes(sources))
    stamp = hashlib.sha256(repr((nvcc, flags, names)).encode() + text).hexdigest()
    if (CUDA_BUILD / "stamp").is_file() and (CUDA_BUILD / "stamp").read_text() == stamp:
        return
    CUDA_BUILD.mkdir(parents=True, exist_ok=True)
    threads = f"--threads={os.cpu_count() or 1}"
    with tempfile.TemporaryDirectory(dir=CUDA_BUILD) as out:
        command = [nvcc, *flags, threads, "-fatbin", f"--output-directory={out}", *names]
        subprocess.run(command, cwd=ROOT, check=True)
        for fatbin in Path(out).glob("*.fatbin"):
            fatbin.replace(CUDA_BUILD / fatbin.name)
    (CUDA_BUILD / "stamp").write_text(stamp)


INCBIN = """\
__asm__(".section .rodata\\n.balign 64\\n.hidden rap_fatbin_{name}\\n"
        ".globl rap_fatbin_{name}\\nrap_fatbin_{name}:\\n.incbin \\"{path}\\"\\n"
        ".hidden rap_fatbin_{name}_end\\n.globl rap_fatbin_{name}_end\\n"
        "rap_fatbin_{name}_end:\\n.byte 0\\n.previous\\n");
extern const unsigned char rap_fatbin_{name}[], rap_fatbin_{name}_end[];
"""


def fatbin_table(kernels: list[str], made: str, toolkit: int) -> str:
    """C source of csrc/cuda/fatbin.h's table."""
    parts = ["/* written by setup.py */", '#include "cuda/fatbin.h"']
    parts += [INCBIN.format(name=r, path=CUDA_BUILD / f"{r}_cuda.fatbin") for r in kernels]
    rows = [f'{{"{r}", rap_fatbin_{r}, rap_fatbin_{r}_end}},' for r in kernels]
    parts += ["const rap_fatbin rap_fatbins[] = {", *rows, "{NULL, NULL, NULL}};"]
    parts += [f'const char rap_fatbin_made[] = "{made}";']
    parts += [f"const int rap_fatbin_toolkit = {toolkit};", ""]
    return "\n".join(parts)


def device_code() -> tuple[Path, list[Path]]:
    """(the generated source, what it includes)."""
    sources = sorted((ROOT / "csrc").glob("*/*_cuda.cu"))
    found = find_nvcc() if sources else "there is no device code"
    kernels, toolkit, made = [], 0, found
    if isinstance(found, tuple):
        nvcc, toolkit = found
        archs = architectures(nvcc)
        compile_fatbins(nvcc, archs, sources)
        kernels = [p.name.removesuffix("_cuda.cu") for p in sources]
        names = " ".join(f"sm_{a}" for a in archs)
        made = f"CUDA {toolkit // 1000}.{toolkit % 1000 // 10}: {names} and PTX"
    elif os.environ.get("RAP_CUDA") == "on":
        raise SystemExit(f"RAP_CUDA=on, but {found}")
    CUDA_BUILD.mkdir(parents=True, exist_ok=True)
    table = CUDA_BUILD / f"fatbins{'' if kernels else '_none'}.c"
    text = fatbin_table(kernels, made, toolkit)
    if not table.is_file() or table.read_text() != text:
        table.write_text(text)
    return table, [CUDA_BUILD / f"{r}_cuda.fatbin" for r in kernels]


class BuildExt(build_ext):
    def build_extension(self, ext: Extension) -> None:
        table, fatbins = device_code()
        ext.sources.append(os.path.relpath(table))
        ext.depends += map(str, fatbins)
        super().build_extension(ext)


setup(
    ext_modules=[
        Extension(
            "rap._C",
            sources=SOURCES,
            depends=HEADERS + DEVICE_CODE,  # also makes them part of the sdist
            include_dirs=["csrc", numpy.get_include()],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=COMPILE,
            extra_link_args=LINK,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
