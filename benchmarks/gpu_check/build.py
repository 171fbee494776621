"""rap._C for this machine: the one that came along, or built here.

The build runs in a folder of its own without pyproject.toml, which setuptools before 77
refuses, and for this device's architecture only.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .device import GPU
from .report import say

ROOT = Path(__file__).resolve().parent.parent.parent
ASK = "from rap import _C; print(len(_C.CUDA_KERNELS))"


def obstacle() -> str | None:
    """Why the extension that lies in rap/ cannot be used here; None: it can."""
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode != 0:
        return done.stderr.strip().splitlines()[-1]
    return "it has no CUDA kernels" if GPU and done.stdout.strip() == "0" else None


def architecture() -> str:
    """Of this device, as nvcc counts; all of them where there is none."""
    import torch

    if not GPU or not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def build() -> None:
    """Into rap/: raises CalledProcessError with the compiler's words."""
    if importlib.util.find_spec("setuptools") is None:
        raise RuntimeError("setuptools is not installed: bring rap/_C.abi3.so along")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        shutil.copy(ROOT / "setup.py", folder)
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "made"],
            cwd=folder, capture_output=True, text=True,
            env={**os.environ, "RAP_CUDA": "on" if GPU else "off",
                 "RAP_CUDA_ARCHITECTURES": architecture()},
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"build: {done.stderr[-2000:]}")
        for made in (folder / "made").rglob("_C*.so"):
            shutil.copy(made, ROOT / "rap" / made.name)


def ensure() -> None:
    """Before anything imports rap here."""
    why = obstacle()
    if why is not None:
        say("environment", "built here", why=why)
        build()
        why = obstacle()
        if why is not None:
            raise RuntimeError(f"the extension built here cannot be used: {why}")
