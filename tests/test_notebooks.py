"""The notebooks run from top to bottom, and lie in git without outputs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
NEEDED = ("nbclient", "nbformat", "ipykernel", "torch", "transformers", "datasets")
NEEDED += ("jinja2", "matplotlib", "pandas")
# looked for, not imported: with ipykernel loaded, other tests believe to be a notebook;
# for the same reason a notebook is executed in another process
MISSING = [name for name in NEEDED if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")


EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=1200).execute()
nbformat.write(notebook, sys.argv[2])
"""


def outputs(notebook) -> str:
    """All that the cells printed or showed, as one text."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            found += [output.get("text", ""), data.get("text/plain", "")]
            found.append(data.get("text/html", ""))
    return "\n".join(found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.fixture
def shown(request, tmp_path, monkeypatch):
    """What the notebook of that stem shows when it runs in `tmp_path`."""
    import nbformat

    (path,) = [path for path in NOTEBOOKS if path.stem == request.param]
    root = str(path.parent.parent)
    found = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", found)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = tmp_path / "done.ipynb"
    subprocess.run(
        [sys.executable, "-c", EXECUTE, path, done], check=True, cwd=tmp_path, timeout=1500
    )
    return outputs(nbformat.read(done, as_version=4))


@pytest.mark.proof
@pytest.mark.parametrize("shown", ["01_select"], indirect=True)
def test_01_select_runs_and_shows_a_selection(shown, tmp_path):
    assert "9 of 105 samples kept" in shown
    assert shown.count("data:image/webp;base64,") == 6  # thumbnails of the selection
    assert "Jaccard" in shown
    (report,) = tmp_path.glob("rap-*/report.html")
    assert "105 questions of MATH-V" in report.read_text(encoding="utf-8")
    assert "p_answer1" in shown  # the model's scores


@pytest.mark.proof
@pytest.mark.parametrize("shown", ["02_inside_ace"], indirect=True)
def test_02_inside_ace_runs_and_shows_what_decides(shown):
    assert shown.count("<Figure size") == 3
    assert "half captured, published: ln psi = -2.33, decided by 'six', seen by 1 " in shown
    assert "half captured, ours: ln psi = -0.27, decided by 'Wait', seen by 13 " in shown
    assert "published: healthy and half captured overlap" in shown
    assert "ours: healthy and half captured lie apart" in shown
    assert "of the attention on the image" in shown  # the model's own q and k


@pytest.mark.skipif(find_spec("trl") is None, reason="not installed: trl")
@pytest.mark.proof
@pytest.mark.parametrize("shown", ["03_train_grpo"], indirect=True)
def test_03_train_grpo_trains_reselects_and_goes_on(shown, tmp_path):
    assert "of 120 samples kept" in shown
    assert "'role': 'user'" in shown and "PIL.Image.Image" in shown  # TRL's row
    for step in (4, 8, 12):
        assert f"after step {step}: " in shown
    assert "same prompts in the same order: True" in shown
    assert "same re-selections: True" in shown
    (run,) = tmp_path.glob("rap-*/run")
    assert (run / "checkpoint-12" / "model.safetensors").exists()
