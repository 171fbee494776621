"""Every option of every room on the device against the CPU: the program that the emulated
device runs too (tests/cuda_emulator/options.py)."""

from __future__ import annotations

import os
import subprocess
import sys

from .build import ROOT
from .device import GPU
from .report import say

ROOMS = ("cde", "linear_cde", "ace", "drm")


def run(limit: float) -> None:
    if not GPU:
        say("options", "all", skipped="DEV=cpu")
        return
    path = os.pathsep.join((str(ROOT / "tests"), str(ROOT)))
    env = {**os.environ, "RAP_OPTIONS_DEVICE": "cuda", "PYTHONPATH": path}
    for room in ROOMS:
        command = [sys.executable, "-m", "cuda_emulator.options", room]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=env, capture_output=True, text=True,
                timeout=limit / len(ROOMS),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            say("options", room, skipped=f"not done after {limit / len(ROOMS):.0f} s")
            continue
        ok = done.returncode == 0
        say("options", room, ok=ok, said="" if ok else done.stderr.strip()[-500:])
