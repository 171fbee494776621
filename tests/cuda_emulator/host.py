"""A copy of the package rap with one text changed in it: a seeded bug of the host side.

C files are built without optimisation of note, once; a bug builds its own file again and
links. The fat binaries are those inside the extension as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rap import _C

from . import build
from .build import CSRC, Mutation
from .fake.build import images

ROOT = CSRC.parent
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-w", "-ffp-contract=off", "-fno-math-errno",
         "-fno-trapping-math", "-fvisibility=hidden", "-fPIC",
         "-DPy_LIMITED_API=0x030B0000", f"-I{np.get_include()}",
         f"-I{sysconfig.get_paths()['include']}"]  # fmt: skip
INCBIN = """\
__asm__(".section .rodata\\n.balign 64\\nimage_{name}: .incbin \\"{path}\\"\\n"
        ".globl image_{name}\\n.hidden image_{name}\\n.byte 0\\n.previous\\n");
extern const unsigned char image_{name}[];
"""


def _compile(source: Path, target: Path, csrc: Path = CSRC) -> None:
    build._run(build.compiler(), *FLAGS, f"-I{csrc}", "-c", source, "-o", target)


def _fatbins(folder: Path) -> Path:
    """C source of csrc/cuda/fatbin.h's table, with what this build holds."""
    parts, rows = ['#include "cuda/fatbin.h"'], []
    library = Path(_C.__file__).read_bytes()
    for name, image in zip(_C.CUDA_KERNELS, images(library), strict=True):
        path = folder / f"{name}.fatbin"
        path.write_bytes(image)
        parts.append(INCBIN.format(name=name, path=path))
        rows.append(f'{{"{name}", image_{name}, image_{name} + {len(image)}}},')
    made = re.search(rb"CUDA \d+\.\d+: sm_[^\0]*", library)[0].decode()
    parts += ["const rap_fatbin rap_fatbins[] = {", *rows, "{0, 0, 0}};"]
    parts += [f'const char rap_fatbin_made[] = "{made}";']
    parts += ["const int rap_fatbin_toolkit = 13000;", ""]
    (folder / "fatbins.c").write_text("\n".join(parts))
    return folder / "fatbins.c"


def _object(source: Path) -> str:
    return str(source.relative_to(CSRC)).replace("/", "-") + ".o"


def _make_objects(folder: Path) -> None:
    for source in sorted(CSRC.rglob("*.c")):
        _compile(source, folder / _object(source))
    _compile(_fatbins(folder), folder / "fatbins.o")


def _key() -> str:
    text = [repr(FLAGS), Path(_C.__file__).read_bytes().hex()]
    text += [p.read_text() for p in sorted(CSRC.rglob("*.[ch]"))]
    return build.digest("\0".join(text))


def _link(objects: list[Path], target: Path) -> None:
    build._run(
        build.compiler(), "-shared", "-o", target, *objects, "-lm", "-lpthread", "-ldl"
    )


def _objects_with(mutation: Mutation, folder: Path) -> list[Path]:
    """The objects, one of them built again from a changed copy."""
    changed = CSRC.parent / mutation.file
    with build.kept(f"host-{_key()}", _make_objects) as base:
        objects = [base / _object(p) for p in sorted(CSRC.rglob("*.c")) if p != changed]
        objects.append(base / "fatbins.o")
    copy = folder / "csrc"
    shutil.copytree(CSRC, copy)
    path = folder / mutation.file
    mutation.apply(path)
    _compile(path, folder / "changed.o", copy)
    return [*objects, folder / "changed.o"]


@contextmanager
def package(mutation: Mutation | None = None) -> Iterator[Path]:
    """The folder to import rap from."""
    if mutation is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix="host-", dir=build.cache()) as name:
        folder = Path(name)
        (folder / "rap").mkdir()
        for path in (ROOT / "rap").iterdir():
            if path.name != "__pycache__":
                os.symlink(path, folder / "rap" / path.name)
        if mutation.file.startswith("rap/"):
            (folder / mutation.file).unlink()
            shutil.copy(ROOT / mutation.file, folder / mutation.file)
            mutation.apply(folder / mutation.file)
        else:
            extension = folder / "rap" / Path(_C.__file__).name
            extension.unlink()
            _link(_objects_with(mutation, folder), extension)
        yield folder
