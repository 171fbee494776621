"""The notebooks run from top to bottom, and lie in git without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat", reason="needs the extra test")
nbclient = pytest.importorskip("nbclient", reason="needs the extra test")
pytest.importorskip("ipykernel", reason="needs the extra test")
for _name in ("torch", "transformers", "datasets", "jinja2", "matplotlib", "pandas"):
    pytest.importorskip(_name, reason="needs the extra demo")


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
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jupyter's own
def test_01_select_runs_and_shows_a_selection(tmp_path, monkeypatch):
    (path,) = [path for path in NOTEBOOKS if path.stem == "01_select"]
    root = str(path.parent.parent)
    found = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", found)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    shown = outputs(notebook)
    assert "9 of 105 samples kept" in shown
    assert shown.count("data:image/webp;base64,") == 6  # thumbnails of the selection
    assert "Jaccard" in shown
    (report,) = tmp_path.glob("rap-*/report.html")
    assert "105 questions of MATH-V" in report.read_text(encoding="utf-8")
    assert "p_answer1" in shown  # the model's scores
