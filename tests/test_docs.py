"""The pages of the site are true: their Python runs, their commands parse, their links lead
somewhere (what ``make docs`` builds and checks is more)."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

import rap
from rap.cli.commands import main
from rap.config import ChooseOptions
from rap.scores.bill import Prices
from rap.scoring.run import ScoringOptions, SelectOptions
from rap.trl.data import prepare
from rap.trl.reselect import Reselect

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / ".github/docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]
NOT_RUN = re.compile(r"<!-- not run: [^>]+ -->\n```python\n.*?```", re.S)
NEEDS_MODEL = {"quickstart.md"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python_of(path: Path) -> str:
    text = NOT_RUN.sub("", path.read_text(encoding="utf-8"))
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.S | re.M))


WITH_PYTHON = [p for p in PAGES if p.parent != ROOT and python_of(p).strip()]


def test_some_pages_have_python_that_runs():
    assert {p.name for p in WITH_PYTHON} >= {"quickstart.md", "evidence.md", "kernels.md"}


@pytest.mark.parametrize("path", WITH_PYTHON, ids=name_of)
def test_python_of_the_docs_runs(path, tmp_path):
    needed = ["torch", "transformers", "datasets", "jinja2", "PIL"]
    needed = needed if path.name in NEEDS_MODEL else []
    needed += ["matplotlib", "pandas"] * (".plot()" in python_of(path))
    if lacking := [module for module in needed if find_spec(module) is None]:
        pytest.skip(f"not installed: {lacking}")
    script = tmp_path / "page.py"
    script.write_text(python_of(path), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-2000:]


FENCES = [
    (path, code)
    for path in PAGES
    for code in re.findall(
        r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M
    )
]


@pytest.mark.parametrize(
    ("path", "code"), FENCES, ids=[f"{p.stem}-{i}" for i, (p, _) in enumerate(FENCES)]
)
def test_python_of_the_docs_names_what_is_there(path, code):
    """Those blocks, too, that are not run: every name of ours is there, and every keyword
    of our functions is one that they take."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "rap":
            for name in node.names:
                assert hasattr(import_module(node.module), name.name), name.name
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "rap":
            assert hasattr(rap, node.attr), node.attr
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "sel":
            assert node.attr in OF_SELECTIONS, node.attr
        if isinstance(node, ast.Call) and ast.unparse(node.func) in TAKEN:
            known = TAKEN[ast.unparse(node.func)]
            assert {word.arg for word in node.keywords} <= known, ast.unparse(node)


def taken(function, *options) -> set[str]:
    """The keywords of a function, and of the TypedDicts that its ``**options`` are."""
    found = set(inspect.signature(function).parameters)
    return found.union(*(kind.__annotations__ for kind in options))


OF_SELECTIONS = dir(
    rap.choose(
        rap.Scores.from_rollouts(
            [{"id": "a", "with_image": arm, "correct": arm} for arm in (True, False)]
        )
    )
)
TAKEN = {
    "rap.select": taken(rap.select, SelectOptions),
    "rap.score": taken(rap.score, ScoringOptions),
    "rap.choose": taken(rap.choose, ChooseOptions),
    **{f"rap.{name}": taken(getattr(rap, name)) for name in ("cde", "ace", "drm", "load")},
    "rap.linear_cde": taken(rap.linear_cde),
    "rap.cost": taken(rap.cost) | {field.name for field in dataclasses.fields(Prices)},
    "rap.Scores.from_rollouts": taken(rap.Scores.from_rollouts),
    **{
        f"sel.{name}": taken(getattr(rap.Selection, name))
        for name in ("report", "save", "export", "push_to_hub", "to_pandas", "compare")
    },
    "Reselect": {field.name for field in dataclasses.fields(Reselect)},
    "prepare": taken(prepare),
}


def test_planted_names_are_found():
    for code in ("rap.selct()", "sel.summry()", "rap.select(m, p, d, bugdet=1)"):
        with pytest.raises(AssertionError):
            test_python_of_the_docs_names_what_is_there(None, code)


@pytest.mark.skipif(find_spec("trl") is None, reason="not installed: trl")
@pytest.mark.parametrize("trainer", ["GRPO", "RLOO"])
def test_the_script_for_trl_trains(trainer, tmp_path):
    """As it stands, on the demo's model, on a CPU, for two steps."""
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (DOCS / "trainers/trl.md").read_text("utf-8"), re.S | re.M
    )
    for there, here in (
        ('"Qwen/Qwen2.5-VL-3B-Instruct"', "WEIGHTS"),
        ('dtype="bfloat16"', 'dtype="float32"'),
        ("bf16=True", "bf16=False, use_cpu=True"),
        ("max_steps=200", "max_steps=2"),
        ("completion_length=512", "completion_length=16"),
        ("=8,", "=4,"),
        ('report_to=["tensorboard"]', "report_to=[]"),
        ("GRPO", trainer),
    ):
        assert there in code, there
        code = code.replace(there, here)
    script = tmp_path / "script.py"
    script.write_text(f"{SELECTED}\n{code}\nassert trainer.state.global_step == 2\n")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((tmp_path / "run/rewards.jsonl").read_text().splitlines()) >= 2


SELECTED = """
from pathlib import Path
import rap
from rap.demo.model import WEIGHTS
from rap.demo.world import draw, write
from rap.samples import open_samples

data = open_samples(write(draw(12, seed=0), Path("data")))
rows = [
    {"id": name, "with_image": image, "correct": image and k < 3}
    for name in data.ids
    for image in (True, False)
    for k in range(5)
]
scores = rap.Scores.from_rollouts(rows, dataset=data)
rap.choose(scores, budget=0.5).save("selection/")
"""


def commands_of(path: Path) -> list[list[str]]:
    """Every ``rap ...`` of the fences of a page, as words."""
    text = path.read_text(encoding="utf-8")
    found = []
    for fence in re.findall(r"^ *```(?:sh|bash|console)\n(.*?)^ *```", text, re.S | re.M):
        for line in fence.replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip(), comments=True)
            if "rap" in words[:6]:
                words = words[words.index("rap") + 1 :]
                found.append(words[: words.index(">")] if ">" in words else words)
    return found


COMMANDS = [(p, words) for p in PAGES for words in commands_of(p)]


def test_the_docs_have_commands():
    assert len(COMMANDS) > 30
    said = {words[0] for _, words in COMMANDS if words}
    assert said >= {"score", "choose", "select", "report", "export", "train", "merge"}


@pytest.mark.parametrize(
    ("path", "words"), COMMANDS, ids=[f"{p.stem}-{' '.join(w)[:60]}" for p, w in COMMANDS]
)
def test_commands_of_the_docs_parse(path, words):
    """Its command is there, and so is each of its options, with a value that it takes."""
    if not words:  # the completion's script
        return
    name, *rest = words
    command = main.commands[name]
    context = click.Context(command, info_name=name)
    command.parse_args(context, [word for word in rest if word != "..."])


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_of_the_pages_lead_somewhere(path):
    if path.name == "README.md":

        def known(target: str) -> bool:
            return (ROOT / target).exists()

    else:
        pages = {"index.md", "method.md", "contributing.md", "changelog.md"}
        pages |= {"settings.md", "cli.md", "results/trainers.md", "results/engines.md"}
        results = (ROOT / "benchmarks/results").glob("*.md")
        pages |= {f"results/{p.name}" for p in results}
        pages |= {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")}

        def known(target: str) -> bool:
            there = os.path.normpath(path.parent.relative_to(DOCS) / target)
            return Path(there).as_posix() in pages or (path.parent / target).exists()

    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert known(target), target


def test_every_page_is_in_the_menu():
    menu = (ROOT / ".github/mkdocs.yml").read_text(encoding="utf-8")
    for path in DOCS.rglob("*.md"):
        assert f": {path.relative_to(DOCS).as_posix()}\n" in menu, path


@pytest.mark.skipif(
    any(find_spec(m) is None for m in ("mkdocs", "material", "mkdocstrings")),
    reason="the extra docs is not installed (make docs)",
)
def test_the_site_is_built_without_a_warning(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / '.github'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", str(ROOT / ".github/mkdocs.yml"), "-d", str(tmp_path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "formulas.html").read_text(encoding="utf-8")
    assert page.count("<math") >= 9
    assert "rap-select" in (tmp_path / "index.html").read_text(encoding="utf-8")
    for path in tmp_path.rglob("*.html"):  # a reader's browser asks nobody
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="https?://', text), (
            path
        )
