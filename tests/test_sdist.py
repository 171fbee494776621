"""From the source distribution to a wheel that works, without the network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("csrc", "rap")
USE = """
import pathlib, numpy as np, rap
assert pathlib.Path(rap.__file__).is_relative_to(pathlib.Path.cwd()), rap.__file__
logits = np.log(np.array([[0.5, 0.5], [0.25, 0.75]], np.float32))
kl = rap.cde(logits[1:], logits[:1], want=("kl",)).kl
assert np.allclose(kl, 0.25 * np.log(0.5) + 0.75 * np.log(1.5), atol=1e-6)
print(rap.info()["gpu"])
"""


def python(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"RAP_CUDA": "off", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is distributed: a build leaves files beside its sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", ".*")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    return copy


@pytest.fixture(scope="module")
def expected(sources: Path) -> set[str]:
    """The files, as paths from the root."""
    found = (p for p in sources.rglob("*") if p.is_file())
    return {p.relative_to(sources).as_posix() for p in found}


@pytest.fixture(scope="module")
def sdist(
    sources: Path, expected: set[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """After ``expected``: building leaves an egg-info beside the sources."""
    folder = tmp_path_factory.mktemp("dist")
    code = "import sys; from setuptools.build_meta import build_sdist as b; b(sys.argv[1])"
    python("-c", code, folder, cwd=sources)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-build-isolation", "--no-deps", "--no-index")
    python("-m", "pip", "wheel", *offline, "--wheel-dir", folder, sdist, cwd=folder)
    (path,) = folder.iterdir()
    return path


def test_the_sdist_holds_every_source(sdist: Path, expected: set[str]) -> None:
    with tarfile.open(sdist) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    assert expected - names == set()


def test_the_wheel_of_the_sdist_holds_the_whole_package(
    wheel: Path, expected: set[str]
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in expected if name.startswith("rap/")} - names == set()
    assert not {name for name in names if name.startswith(("tests/", "benchmarks/"))}


def test_the_wheel_of_the_sdist_computes(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    assert "RAP_CUDA=off" in python("-c", USE, cwd=tmp_path)
