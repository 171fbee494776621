"""From the source distribution to a wheel that works, without the network."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = {".gitignore", ".pre-commit-config.yaml"}
"""What a clone has and the sdist has not: only git and its hooks read it."""
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


def tracked() -> list[str]:
    """Paths of git's files from the root; some may be gone from the working tree."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in done.stdout.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def expected() -> set[str]:
    """The files of the sdist, as paths from the root."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs git and a clone: its list of files says what belongs here")
    return set(tracked()) - LEFT_OUT


@pytest.fixture(scope="module")
def sources(expected: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone: a build leaves files beside its sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in expected | LEFT_OUT:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_case_31_the_sdist_holds_what_a_clone_has(sdist: Path, expected: set[str]) -> None:
    with tarfile.open(sdist) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    assert expected - names == set()
    written = {n for n in names - expected if not n.startswith("rap_select.egg-info/")}
    assert written == {"PKG-INFO", "setup.cfg"}
    must = {"Makefile", ".ci/constraints.txt", "csrc/ace/ace_cuda.cu", "tests/conftest.py"}
    assert must <= names and sum(name.endswith("_cuda.cu") for name in names) == 6


@pytest.mark.proof
def test_case_31_the_wheel_of_the_sdist_holds_the_whole_package(
    wheel: Path, expected: set[str]
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in expected if name.startswith("rap/")} - names == set()
    assert not {name for name in names if name.startswith(("tests/", "benchmarks/"))}


@pytest.mark.proof
def test_the_wheel_names_its_licences_and_the_one_version(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (name,) = [n for n in names if n.endswith(".dist-info/METADATA")]
        said = email.message_from_bytes(archive.read(name))
    assert said["License-Expression"] == "Apache-2.0 AND MIT"
    files = said.get_all("License-File")
    data = {f"rap/demo/data/{name}/LICENSE" for name in ("mathvision", "puzzlevqa")}
    assert set(files) == {"LICENSE", *data}
    folder = name.removesuffix("METADATA")
    assert {f"{folder}licenses/{file}" for file in files} <= set(names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = (ROOT / ".github/CITATION.cff").read_text()
    assert said["Version"] == project["version"]
    assert f"\nversion: {project['version']}\n" in cited
    assert f"\n## {project['version']}\n" in (ROOT / ".github/CHANGELOG.md").read_text()


@pytest.mark.proof
def test_the_wheel_of_the_sdist_computes(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    assert "RAP_CUDA=off" in python("-c", USE, cwd=tmp_path)
