"""benchmarks.gpu_check in its dry form: the same code on small shapes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check import build, report

ROOT = Path(__file__).resolve().parent.parent


def dry(out: Path, *sections: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", *sections],
        cwd=ROOT, capture_output=True, text=True, timeout=1500,
        env={**os.environ, "DEV": "cpu", "OUT": str(out), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_dry_run_checks_every_room_and_ends_with_one_table(tmp_path):
    done = dry(tmp_path, "environment", "correct", "callers", "sanitizer")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(x) for x in (tmp_path / "gpu_check.jsonl").read_text().splitlines()]
    checks = [x for x in lines if "ok" in x]
    assert all(x["ok"] for x in checks)
    for room in ("cde", "linear_cde", "ace", "drm"):
        assert any(x["name"].startswith(room) for x in checks), room
    assert done.stdout.startswith(f"gpu_check: {len(checks)} checks, 0 failed")
    assert len(done.stdout) < 12_000  # what the device machine's reply shows


def test_an_unknown_section_is_refused(tmp_path):
    done = dry(tmp_path, "weather")
    assert done.returncode != 0 and "weather" in done.stderr


def test_what_failed_and_what_broke_is_in_the_table(monkeypatch):
    monkeypatch.setattr(report, "_lines", [
        {"section": "correct", "name": "cde kl", "ok": False, "error": 3e-4},
        {"section": "sections", "name": "times", "broke": "not done after 130 s"},
        {"section": "times", "name": "cde kl", "ms": 0.1234567, "eager": 8.2},
    ])  # fmt: skip
    text = report.table()
    assert "1 checks, 2 failed" in text
    assert "FAILED correct: cde kl: ok False, error 0.0003" in text
    assert "FAILED sections: times: broke not done after 130 s" in text
    assert "0.1235" in text and "eager 8.2" in text


def test_the_build_needs_no_pyproject(monkeypatch, tmp_path):
    """setuptools before 77 refuses the project's table: setup.py is enough."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "rap").mkdir()
    (tmp_path / "setup.py").write_text(
        "import os, pathlib, sys\n"
        "assert not pathlib.Path('pyproject.toml').exists()\n"
        "assert os.environ['RAP_CUDA'] == 'on', os.environ['RAP_CUDA']\n"
        "assert os.environ['RAP_CUDA_ARCHITECTURES'] == '90'\n"
        "made = pathlib.Path(sys.argv[-1]) / 'rap'\n"
        "made.mkdir(parents=True)\n"
        "(made / '_C.abi3.so').write_bytes(b'built')\n"
    )
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "GPU", True)
    monkeypatch.setattr(build, "architecture", lambda: "90")
    build.build()
    assert (tmp_path / "rap" / "_C.abi3.so").read_bytes() == b"built"
    (tmp_path / "setup.py").write_text("raise SystemExit('nvcc: no such thing')")
    with pytest.raises(RuntimeError, match="no such thing"):
        build.build()


def test_the_limits_of_the_sections_add_up_to_less_than_the_whole():
    from benchmarks.gpu_check import __main__ as program

    assert sum(limit for _, limit in program.SECTIONS.values()) <= program.WHOLE < 570
