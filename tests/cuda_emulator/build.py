"""Builds the .cu files as C, with the fibers that stand for CUDA threads.

    library("plain")   librap_kernels.so, for the fake libcuda
    runner("tsan")     a program that runs a script of launches (runner.c)

Variants: plain, tsan (ThreadSanitizer), asan (AddressSanitizer and UBSan). ``mutation``
replaces one text in one source file first: a seeded bug. Results are kept in a folder
named after everything that went into them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
KERNELS = (
    "cde/cde_cuda.cu",
    "ace/ace_cuda.cu",
    "ace/ace_linear_cuda.cu",
    "ace/ace_tensor_cuda.cu",
    "drm/drm_cuda.cu",
    "gemm/gemm_cuda.cu",
)
COMMON = [
    "-std=c11",
    "-D_GNU_SOURCE",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-fPIC",
    "-g",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-missing-field-initializers",
]
SANITIZE = {
    "plain": ["-O2"],
    "tsan": ["-O1", "-fsanitize=thread"],
    "asan": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
}


@dataclass(frozen=True)
class Mutation:
    """One text of one file below csrc, and what stands in its place: must occur once."""

    file: str
    before: str
    after: str

    def apply(self, path: Path) -> None:
        text = path.read_text()
        if text.count(self.before) != 1:
            raise ValueError(f"{self}: found {text.count(self.before)} times")
        path.write_text(text.replace(self.before, self.after))


def compiler() -> str | None:
    return shutil.which("gcc")


def sources() -> list[Path]:
    return [CSRC / name for name in KERNELS if (CSRC / name).exists()]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _ingredients(variant: str, mutation: Mutation | None) -> str:
    text = [variant, repr(mutation), repr(COMMON), repr(SANITIZE)]
    files = [*CSRC.rglob("*.h"), *sources(), *HERE.glob("*.[ch]")]
    text += [path.read_text() for path in sorted(files)]
    return digest("\0".join(text))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*command: object) -> None:
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command}\n{done.stderr}")


def _mutate(folder: Path, mutation: Mutation | None) -> Path:
    """A copy of csrc with the mutation, or csrc itself."""
    if mutation is None:
        return CSRC
    copy = folder / "csrc"
    shutil.copytree(CSRC, copy, ignore=shutil.ignore_patterns("*.so", "third_party"))
    mutation.apply(copy / mutation.file)
    return copy


def _includes(path: Path, found: set[Path] | None = None) -> set[Path]:
    """The file and what it includes of csrc, at any depth."""
    found = set() if found is None else found
    if path.is_file() and path not in found:
        found.add(path)
        for name in re.findall(r'^\s*#include "([^"]+)"', path.read_text(), re.M):
            _includes((path.parent / name).resolve(), found)
    return found


def _unchanged(unit: Path, variant: str, mutation: Mutation | None) -> Path | None:
    """The object of a unit that does not see the bug, from the build without."""
    if mutation is None or CSRC / mutation.file in _includes(unit):
        return None
    return folder(variant) / f"{unit.stem}.o"


def _build(folder: Path, variant: str, mutation: Mutation | None) -> None:
    cc, flags = compiler(), SANITIZE[variant]
    csrc = _mutate(folder, mutation)
    units = [csrc / path.relative_to(CSRC) for path in sources()]
    names = [
        n for u in units for n in re.findall(r"^RAP_KERNEL\((\w+),", u.read_text(), re.M)
    ]
    (folder / "entries.h").write_text("".join(f"ENTRY({name})\n" for name in names))
    objects = []
    for unit in units:
        made = _unchanged(CSRC / unit.relative_to(csrc), variant, mutation)
        objects.append(made or folder / f"{unit.stem}.o")
        if made is None:
            _run(cc, *COMMON, *flags, f"-I{HERE}", "-x", "c", "-c", unit, "-o", objects[-1])
    for name, extra in (
        ("fiber.c", ["-DRAP_TSAN"] if variant == "tsan" else []),
        ("approx.c", []),
        ("table.c", []),
        ("runner.c", flags),
    ):
        target = folder / f"{name}.o"
        _run(cc, *COMMON, "-O2", *extra, f"-I{HERE}", f"-I{folder}", "-c", HERE / name,
             "-o", target)  # fmt: skip
        if name != "runner.c":
            objects.append(target)
    link = [f for f in flags if f.startswith("-fsan")]
    _run(cc, *link, "-o", folder / "runner", folder / "runner.c.o", *objects, "-lm")
    _run(cc, *link, "-shared", "-o", folder / "librap_kernels.so", *objects, "-lm")


def cache() -> Path:
    """Where builds are kept."""
    base = Path(os.environ.get("RAP_EMULATOR_CACHE", tempfile.gettempdir()))
    base = base / f"rap-emulator-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    return base


@contextmanager
def kept(name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """The folder that ``make`` filled; once for all processes."""
    path = cache() / name
    with _locked(path):
        if not (path / "done").exists():
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
            make(path)
            (path / "done").touch()
    yield path


def folder(variant: str = "plain", mutation: Mutation | None = None) -> Path:
    """The folder with the finished build; built if need be."""
    name = f"{variant}-{_ingredients(variant, mutation)}"
    with kept(name, lambda path: _build(path, variant, mutation)) as path:
        return path


def library(variant: str = "plain", mutation: Mutation | None = None) -> Path:
    return folder(variant, mutation) / "librap_kernels.so"


def runner(variant: str = "plain", mutation: Mutation | None = None) -> Path:
    return folder(variant, mutation) / "runner"


if __name__ == "__main__":
    print(library())
