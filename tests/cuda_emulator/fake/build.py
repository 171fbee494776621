"""Builds the fake libcuda.so.1 and libcublasLt, and lists what the fat binaries hold."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rap import _C

from ..build import CSRC, cache, compiler, library
from ..gates import cuobjdump

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror",
         "-fvisibility=hidden", "-fPIC", "-shared"]  # fmt: skip


def _cached(key: str, name: str, make) -> Path:
    """The file ``name`` that ``make(path)`` writes, once for one key."""
    path = cache() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}-{name}"
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


def _sections(elf: bytes) -> list[tuple[str, int, bytes]]:
    """(name, size, what the file holds of it)."""
    (start,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", elf, start + i * size) for i in range(count)]
    strings = heads[names][4]
    found = []
    for name, _, _, _, offset, length in heads:
        begin = strings + name
        text = elf[begin : elf.index(b"\0", begin)].decode()
        found.append((text, length, elf[offset : offset + length]))
    return found


def _attributes(info: bytes) -> dict[int, bytes]:
    """Of one .nv.info section: EIATTR number to payload."""
    found, at = {}, 0
    while at < len(info):
        form, attribute, value = struct.unpack_from("<BBH", info, at)
        size = value if form == 4 else 0
        found[attribute] = info[at + 4 : at + 4 + size]
        at += 4 + size
    return found


def kernels_of(cubin: bytes) -> dict[str, tuple[int, int, int]]:
    """{kernel: (parameter bytes, most threads a block, bytes of shared memory)} of an ELF
    cubin: EIATTR_PARAM_CBANK (0x0a), EIATTR_MAX_THREADS (0x05), .nv.shared."""
    sections = _sections(cubin)
    shared = {name.removeprefix(".nv.shared."): size for name, size, _ in sections}
    found = {}
    for section, _, data in sections:
        if section.startswith(".nv.info."):
            name, said = section.removeprefix(".nv.info."), _attributes(data)
            (_, _, params), (threads, _, _) = (
                struct.unpack_from("<IHH", said[0x0A]),
                struct.unpack_from("<III", said[0x05]),
            )
            found[name] = (params, threads, shared.get(name, 0))
    return found


def images(extension: bytes) -> Iterator[bytes]:
    """The fat binaries inside the extension, each as long as its header says."""
    at = -1
    while (at := extension.find(b"\x50\xed\x55\xba\x01\x00\x10\x00", at + 1)) >= 0:
        (size,) = struct.unpack_from("<Q", extension, at + 8)
        yield extension[at : at + 16 + size]


def _fnv(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def _kernels(image: bytes, folder: Path) -> Iterator[str]:
    """Lines of the list for one fat binary."""
    (folder / "image.fatbin").write_bytes(image)
    command = [str(cuobjdump()), "-xelf", "all", "image.fatbin"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    key = _fnv(image)
    for path in sorted(folder.glob("*.cubin")):
        arch = re.search(r"sm_(\d+)", path.name)[1]
        for name, numbers in sorted(kernels_of(path.read_bytes()).items()):
            yield " ".join(map(str, (f"{key:x}", arch, name, *numbers)))
        path.unlink()


def cubins() -> Path:
    """What the fat binaries inside this build of rap._C hold: see fake_cuda.c."""
    extension = Path(_C.__file__).read_bytes()

    def make(path: Path) -> None:
        major, minor = re.search(rb"CUDA (\d+)\.(\d+): sm_", extension).groups()
        lines = [f"toolkit {int(major) * 1000 + int(minor) * 10}"]
        with tempfile.TemporaryDirectory() as folder:
            for image in images(extension):
                lines += _kernels(image, Path(folder))
        path.write_text("\n".join(lines) + "\n")

    return _cached(hashlib.sha256(extension).hexdigest(), "cubins.txt", make)


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
    """Runs code in a process of its own, with the fakes; ``root``: where rap is."""
    more = options.pop("more", {})
    root = options.pop("root", CSRC.parent)
    path = os.pathsep.join((str(root), str(CSRC.parent / "tests")))
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=1200, cwd=root,
        env={**environment(**options), "PYTHONPATH": path, **more},
    )  # fmt: skip
