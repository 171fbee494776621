"""What ``make lint`` promises is shown to hold: planted errors are found, and only they.

Run by ``make lint``, as it needs the extra ``lint``:  pytest tests/typing/checks.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SCRIPTS = (HERE / "user_script.py", HERE / "correct_script.py")
Place = tuple[Path, int]


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


# ---- a user's script ---------------------------------------------------------


def mypy(tmp_path: Path) -> set[Place]:
    done = run("mypy", "--output", "json", *SCRIPTS)
    assert done.returncode in (0, 1), done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line]
    return {
        ((ROOT / e["file"]).resolve(), e["line"]) for e in found if e["severity"] == "error"
    }


def pyright(tmp_path: Path) -> set[Place]:
    """As an editor with pyright or Pylance shows it, in the mode ``standard``."""
    settings = {
        "include": [str(HERE)],
        "exclude": [__file__],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "standard",
        "pythonVersion": "3.11",
    }
    project = tmp_path / "pyrightconfig.json"
    project.write_text(json.dumps(settings))
    options = ("--project", project, "--pythonpath", sys.executable)
    done = run("basedpyright", "--outputjson", *options)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == len(SCRIPTS)
    return {
        (Path(e["file"]).resolve(), e["range"]["start"]["line"] + 1)
        for e in found["generalDiagnostics"]
    }


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_checker_reports_the_planted_errors_and_nothing_else(
    checker: Callable[[Path], set[Place]], tmp_path: Path
) -> None:
    planted = {
        (script, number)
        for script in SCRIPTS
        for number, line in enumerate(script.read_text().splitlines(), 1)
        if "# planted: " in line
    }
    assert len(planted) >= 20
    assert {script.name for script, _ in planted} == {"user_script.py"}
    assert checker(tmp_path) == planted


# ---- the layers --------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in ("rap", "benchmarks"):
        for source in sorted((ROOT / package).rglob("*.py")):
            target = tmp_path / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    return tmp_path


def layers(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from importlinter.cli import lint_imports as lint; sys.exit(lint())"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


IN_A_FUNCTION = "\ndef _planted():\n    {}\n"
FOR_TYPES = "\nif TYPE_CHECKING:\n    {}\n"
PLANTED = {
    "upwards": ("rap/model/loading.py", "{}", "from ..scoring.run import score"),
    "upwards, in a function": (
        "rap/samples/images.py",
        IN_A_FUNCTION,
        "from ..scores.store import ScoreStore",
    ),
    "upwards, for types": (
        "rap/export/write.py",
        FOR_TYPES,
        "from ..selection.selection import Selection",
    ),
    "upwards, by the top": ("rap/rewards/grading.py", IN_A_FUNCTION, "from rap import cde"),
    "sideways": ("rap/report/page.py", "{}", "from ..export.formats import TARGETS"),
    "a new module without a place": ("rap/helpers.py", "{}", "import os"),
    "a circle in a package": (
        "rap/samples/sample.py",
        IN_A_FUNCTION,
        "from .images import open_image",
    ),
    "a circle of benchmarks": (
        "benchmarks/training_plan.py",
        IN_A_FUNCTION,
        "from benchmarks.training import train",
    ),
    "benchmarks in what is installed": (
        "rap/demo/world.py",
        IN_A_FUNCTION,
        "from benchmarks.demo_model import measure",
    ),
}


def test_the_layers_hold(copy: Path) -> None:
    done = layers(copy)
    assert done.returncode == 0 and "3 kept, 0 broken" in done.stdout, done.stdout


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_import_fails(copy: Path, what: str) -> None:
    place, form, line = PLANTED[what]
    with (copy / place).open("a") as file:
        file.write(form.format(line) + "\n")
    done = layers(copy)
    assert done.returncode == 1 and "BROKEN" in done.stdout, done.stdout
