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

from benchmarks import house

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


# ---- long functions ----------------------------------------------------------


def test_no_function_is_longer_than_80_lines() -> None:
    long = []
    for folder in ("rap", "benchmarks"):
        for path in house.python_files(ROOT / folder):
            long += [(path, n) for n in house.python_functions(path) if n > house.LONG]
    for path in house.c_files(ROOT / "csrc"):
        long += [(path, n) for n in house.c_functions(path) if n > house.LONG]
    assert long == []


def test_no_circle_between_c_files() -> None:
    assert house.circles(house.c_imports(ROOT / "csrc")) == []


def test_long_functions_and_circles_are_seen(tmp_path: Path) -> None:
    body = "    x++;\n" * 81
    (tmp_path / "one.c").write_text(f'#include "two.h"\nvoid\nf(void)\n{{\n{body}}}\n')
    (tmp_path / "two.h").write_text('#include "sub/three.h"\n')
    (tmp_path / "two.c").write_text("")
    (tmp_path / "three.h").write_text('#include "one.h"\n')  # belongs to no unit
    assert list(house.c_functions(tmp_path / "one.c")) == [83]
    assert house.circles(house.c_imports(tmp_path)) == [["one", "two"]]
    script = tmp_path / "long.py"
    script.write_text('def f():\n    """Said\n    in two lines."""\n' + "    x = 1\n" * 80)
    assert list(house.python_functions(script)) == [81]
