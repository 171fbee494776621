"""Real servers on loopback: started, stopped, killed and started again on their port."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE.parents[1] / "rap" / "demo" / "weights"
UP_SECONDS = 900
"""A start of vLLM takes 90 s on two idle cores."""


def spoiled_model(folder: Path) -> Path:
    """The demo's model with a ``generation_config.json`` as several vision models have it:
    a server that follows it samples greedily."""
    shutil.copytree(WEIGHTS, folder)
    path = folder / "generation_config.json"
    theirs = {"do_sample": True, "top_k": 1, "temperature": 0.01}
    path.write_text(json.dumps(json.loads(path.read_text()) | theirs))
    return folder


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclass
class Real:
    """One server process and its children, a process group of their own."""

    command: list[str]
    environment: dict[str, str]
    log: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*self.command, "--port", str(self.port)],
                env=os.environ | self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def wait(self) -> float:
        """Seconds until it answers."""
        started = time.monotonic()
        while time.monotonic() - started < UP_SECONDS:
            assert self.process is not None and self.process.poll() is None, self.tail()
            try:
                url = f"http://127.0.0.1:{self.port}/health"
                with urllib.request.urlopen(url, timeout=5) as reply:
                    if reply.status == 200:
                        return time.monotonic() - started
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise TimeoutError(self.tail())

    def signal(self, number: int) -> None:
        """To the server and its workers."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


def vllm(python: Path, model: Path, log: Path, *more: str) -> Real:
    """The OpenAI server of vLLM on the CPU."""
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", "demo"]
    command += ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
    command += ["--kv-cache-memory-bytes", "100000000", "--max-num-seqs", "16"]
    command += ["--host", "127.0.0.1", *more]
    environment = {
        "PYTHONPATH": str(HERE / "server_site"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return Real(command, environment, log)


def transformers_serve(overlay: Path, model: Path, log: Path) -> Real:
    """``transformers serve`` of this environment, with what it needs besides."""
    script = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", script, "serve", str(model)]
    command += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1"]
    return Real(command, {"PYTHONPATH": str(overlay), "CUDA_VISIBLE_DEVICES": ""}, log)
