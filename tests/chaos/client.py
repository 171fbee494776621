"""The forking process (nursery.py), from here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .harms import Broken, Run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def environment() -> dict[str, str]:
    """Of every process of ours: this package, one thread, no network."""
    return {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


class Nursery:
    """The forking process, from here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.shim = folder / "shim.so"
        command = ["cc", "-O1", "-shared", "-fPIC", HERE / "shim.c", "-o", self.shim]
        command.append("-ldl")
        subprocess.run(command, check=True)
        self.process = subprocess.Popen(
            [sys.executable, HERE / "nursery.py", self.data],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment() | {"LD_PRELOAD": str(self.shim)},
            text=True,
        )
        assert self._line() == "ready", "the nursery did not start"
        self.number = 0
        self.seconds = 0.0
        """CPU time of what has ended."""

    def start(self, order: dict[str, Any]) -> tuple[int, Path]:
        self.number += 1
        said = self.folder / f"said{self.number}"
        self._say({**order, "said": str(said)})
        return int(self._line()), said

    def end(self, started: tuple[int, Path]) -> Run:
        pid, said = started
        self._say({"wait": pid})
        code, seconds = self._line().split()
        self.seconds += float(seconds)
        end = Path(f"{said}.end")
        told = {"count": 0, "kinds": [], "error": ""}
        if end.exists():
            told |= json.loads(end.read_text())
        text = said.read_text(errors="replace") if said.exists() else ""
        for path in (said, end):
            path.unlink(missing_ok=True)
        return Run(int(code), told["count"], told["kinds"], told["error"], text)

    def run(self, order: dict[str, Any]) -> Run:
        return self.end(self.start(order))

    def warm(self, orders: Sequence[dict[str, Any]]) -> None:
        self._say({"warm": orders})
        assert self._line() == "warm"

    def whole(self, order: dict[str, Any]) -> Run:
        """A run that nothing harms. Raises ``Broken`` where it does not succeed."""
        done = self.run(order)
        if done.code != 0:
            raise Broken(f"an undisturbed run: {done}")
        return done

    def _say(self, order: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
