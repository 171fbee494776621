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
nbclient.NotebookClient(notebook, timeout=240).execute()
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


def test_01_select_runs_and_shows_a_selection(tmp_path, monkeypatch):
    import nbformat

    (path,) = [path for path in NOTEBOOKS if path.stem == "01_select"]
    root = str(path.parent.parent)
    found = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", found)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = tmp_path / "done.ipynb"
    subprocess.run(
        [sys.executable, "-c", EXECUTE, path, done], check=True, cwd=tmp_path, timeout=280
    )
    shown = outputs(nbformat.read(done, as_version=4))
    assert "9 of 105 samples kept" in shown
    assert shown.count("data:image/webp;base64,") == 6  # thumbnails of the selection
    assert "Jaccard" in shown
    (report,) = tmp_path.glob("rap-*/report.html")
    assert "105 questions of MATH-V" in report.read_text(encoding="utf-8")
    assert "p_answer1" in shown  # the model's scores
