"""Builds the fake libcuda.so.1 and libcublasLt, and lists what the real cubins hold."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from ..build import CSRC, compiler, library

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror",
         "-fvisibility=hidden", "-fPIC", "-shared"]  # fmt: skip


def _cached(key: str, name: str, make) -> Path:
    """The file ``name`` that ``make(path)`` writes, once for one key."""
    base = Path(os.environ.get("RAP_EMULATOR_CACHE", tempfile.gettempdir()))
    folder = base / f"rap-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}-{name}"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        make(part)
        part.replace(path)
    return path


def shared_library(source: str, *flags: str) -> Path:
    """fake_cuda.c or fake_blas.c as a shared library."""
    text = "".join(p.read_text() for p in sorted(HERE.glob("*.[ch]")))
    text += (HERE.parent / "emulator.h").read_text()

    def make(path: Path) -> None:
        command = [compiler(), *FLAGS, *flags, str(HERE / source), "-o", str(path)]
        done = subprocess.run([*command, "-ldl", "-lpthread", "-lm"],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr

    return _cached(repr((source, flags, FLAGS)) + text, f"{source[:-2]}.so", make)


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")


def _sections(elf: bytes) -> list[tuple[str, bytes]]:
    (start,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", elf, start + i * size) for i in range(count)]
    strings = heads[names][4]
    found = []
    for name, _, _, _, offset, length in heads:
        begin = strings + name
        text = elf[begin : elf.index(b"\0", begin)].decode()
        found.append((text, elf[offset : offset + length]))
    return found


def kernels_of(cubin: bytes) -> dict[str, tuple[int, int]]:
    """{kernel: (parameter bytes, most threads a block)} of an ELF cubin, from its .nv.info
    sections: EIATTR_PARAM_CBANK (0x0a) and EIATTR_MAX_THREADS (0x05)."""
    found = {}
    for name, data in _sections(cubin):
        if not name.startswith(".nv.info."):
            continue
        params, threads, at = 0, 0, 0
        while at < len(data):
            form, attribute, value = struct.unpack_from("<BBH", data, at)
            payload = data[at + 4 : at + 4 + value] if form == 4 else b""
            at += 4 + len(payload)
            if attribute == 0x0A and form == 4:
                params = struct.unpack_from("<IHH", payload)[2]
            if attribute == 0x05 and form == 4:
                threads = struct.unpack_from("<I", payload)[0]
        found[name.removeprefix(".nv.info.")] = (params, threads)
    return found


def cubins() -> Path:
    """A list "kernel parameter-bytes most-threads" of the real device code for sm_80."""
    sources = sorted(CSRC.glob("*/*_cuda.cu"))
    text = "".join(p.read_text() for p in [*sources, *sorted(CSRC.rglob("*.h"))])

    def make(path: Path) -> None:
        lines = []
        for source in sources:
            cubin = path.with_suffix(".cubin")
            command = [nvcc(), "-std=c++17", "-O3", "-fmad=false", f"-I{CSRC}", "-cubin"]
            command += ["-arch=sm_80", str(source), "-o", str(cubin)]
            subprocess.run(command, check=True)
            found = kernels_of(cubin.read_bytes())
            lines += [f"{name} {a} {b}\n" for name, (a, b) in sorted(found.items())]
            cubin.unlink()
        path.write_text("".join(lines))

    return _cached("cubins" + text, "cubins.txt", make)


def environment(seed: int = 0, old_driver: bool = False) -> dict[str, str]:
    """For a process in which rap finds the fakes."""
    flags = ["-DRAP_FAKE_OLD"] if old_driver else []
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": os.pathsep.join((str(CSRC.parent), str(CSRC.parent / "tests"))),
        "RAP_LIBCUDA": str(shared_library("fake_cuda.c", *flags)),
        "RAP_LIBCUBLASLT": str(shared_library("fake_blas.c")),
        "RAP_EMU_KERNELS": str(library()),
        "RAP_FAKE_CUBINS": str(cubins()),
        "RAP_FAKE_SEED": str(seed),
        "RAP_FAKE_THREADS": "64",
    }


def python(code: str, **options) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, with the fakes."""
    more = options.pop("more", {})
    return subprocess.run(
        [sys.executable, "-c", code], env={**environment(**options), **more},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
