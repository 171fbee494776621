"""A copy of the tree to put mutations in, and its extension, built a file at a time."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "mutants"
TREE = WORK / "tree"
OBJECTS = WORK / "objects"
EXTENSION = TREE / "rap" / "_C.abi3.so"

NO_DEVICE_CODE = """\
#include "cuda/fatbin.h"
const rap_fatbin rap_fatbins[] = {{NULL, NULL, NULL}};
const char rap_fatbin_made[] = "built with RAP_CUDA=off";
const int rap_fatbin_toolkit = 0;
"""


def make_copy() -> None:
    """The files that git knows, as they lie in the checkout; what is the same is left."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    wanted = {name for name in names if name and (ROOT / name).is_file()}
    for path in TREE.rglob("*"):
        name = str(path.relative_to(TREE))
        if path.is_file() and path != EXTENSION and name not in wanted:
            path.unlink()
    for name in wanted:
        source, copy = ROOT / name, TREE / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.is_file() or copy.read_bytes() != source.read_bytes():
            shutil.copyfile(source, copy)
    shared = TREE.parent / "shared"  # as beside the checkout
    if not shared.exists() and (ROOT.parent / "shared").is_dir():
        shared.symlink_to((ROOT.parent / "shared").resolve())


@contextlib.contextmanager
def changed(file: str, old: str, new: str) -> Iterator[None]:
    """The copy with one text in place of another. A compiled Python file is told from a
    newer one by seconds and size only: it goes, too."""
    path = TREE / file
    text, seen = path.read_text(), path.stat()
    assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}"
    compiled = Path(importlib.util.cache_from_source(str(path)))
    path.write_text(text.replace(old, new))
    compiled.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.write_text(text)
        os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))  # objects stay newer
        compiled.unlink(missing_ok=True)


# --- the extension --------------------------------------------------------------------


def _constant(name: str) -> list[str]:
    """A list of setup.py, which cannot be imported without building."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    raise LookupError(name)


def _flags() -> list[str]:
    include = [str(TREE / "csrc"), numpy.get_include(), sysconfig.get_path("include")]
    api = "-DPy_LIMITED_API=0x030B0000"
    return [*_constant("COMPILE"), api, "-fPIC", *(f"-I{path}" for path in include)]


def _sources() -> dict[Path, Path]:
    """{source: its object}"""
    found = {}
    for path in sorted((TREE / "csrc").rglob("*.c")):
        found[path] = OBJECTS / (str(path.relative_to(TREE)).replace("/", "-") + ".o")
    return found


def _reads(obj: Path) -> set[Path]:
    """The files that an object was compiled from."""
    text = obj.with_suffix(".d").read_text().replace("\\\n", " ").split(":", 1)[1]
    return {Path(os.path.normpath(name)) for name in text.split()}


def _stale(obj: Path) -> bool:
    if not obj.is_file() or not obj.with_suffix(".d").is_file():
        return True
    made = obj.stat().st_mtime_ns
    return any(not p.is_file() or p.stat().st_mtime_ns > made for p in _reads(obj))


def _compile(source: Path, obj: Path) -> None:
    command = ["cc", *_flags(), "-MMD", "-c", str(source), "-o", str(obj)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        obj.unlink(missing_ok=True)
        raise BuildError(done.stderr)


class BuildError(Exception):
    """The mutant is no program."""


def _objects() -> dict[Path, Path]:
    return _sources() | {OBJECTS / "fatbins_none.c": OBJECTS / "fatbins_none.o"}


def _link() -> None:
    made = EXTENSION.with_suffix(".new")
    objects = map(str, _objects().values())
    command = ["cc", "-shared", *objects, *_constant("LINK"), "-o", str(made)]
    subprocess.run(command, check=True)
    os.replace(made, EXTENSION)  # a loaded one is never written into


def build() -> None:
    """The extension of the copy, for the CPU: what is older than its files is made."""
    OBJECTS.mkdir(parents=True, exist_ok=True)
    if not (OBJECTS / "fatbins_none.c").is_file():
        (OBJECTS / "fatbins_none.c").write_text(NO_DEVICE_CODE)
    stale = {source: obj for source, obj in _objects().items() if _stale(obj)}
    for source, obj in stale.items():
        _compile(source, obj)
    if stale or not EXTENSION.is_file():
        _link()


@contextlib.contextmanager
def built_with(file: str) -> Iterator[None]:
    """The extension with a changed source. Of the tables of instruction sets only the best
    that runs here is made again: a loop is the same text in each. Raises ``BuildError``."""
    here = rap_isa()
    changed_objects = {
        source: obj
        for source, obj in _objects().items()
        if TREE / file in _reads(obj)
        and (not source.stem.startswith("kernels_") or source.stem == f"kernels_{here}")
    }
    kept = {obj: obj.with_suffix(".kept") for obj in changed_objects.values()}
    shutil.copyfile(EXTENSION, EXTENSION.with_suffix(".kept"))
    for obj, copy in kept.items():
        os.replace(obj, copy)
    try:
        for source, obj in changed_objects.items():
            _compile(source, obj)
        _link()
        yield
    finally:
        for obj, copy in kept.items():
            os.replace(copy, obj)
        os.replace(EXTENSION.with_suffix(".kept"), EXTENSION)


@functools.cache
def rap_isa() -> str:
    """The instruction set that the extension takes here. Asked in another process: this one
    must not load it."""
    code = "from rap import _C; print(_C.isa())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TREE, capture_output=True, check=True, text=True,
        env={**os.environ, "PYTHONPATH": str(TREE)},
    )  # fmt: skip
    return done.stdout.strip().removesuffix("_bf16")
