"""The process that forks the commands: it has imported what they need, with the shim.

python nursery.py FOLDER    # then a line of JSON for each order, an answer for each
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import rap
import rap.cli.commands
import rap.demo.tiny
import rap.report.page
import rap.rewards.checker
from rap.cli.shell import Terminated, on_sigterm
from rap.model.driver import ModelDriver
from rap.samples.images import read_bytes
from rap.samples.sample import Bad, sample_sha256
from rap.scoring import filling
from rap.scoring.jobs import Job
from rap.scoring.scorer import Scorer

N = 16
OPTIONS: dict[str, Any] = {
    "shard_size": 4,
    "batch_size": 2,
    "m1": 3,
    "m0": 2,
    "sampling": {"max_new_tokens": 6},
    "max_bad_fraction": 0.1,
    "workers": 1,
    "progress": False,
}
REAL = (filling.Preparation, filling.score_batch, Scorer.is_full, ModelDriver.check)


def make_data(folder: Path) -> Path:
    """``N`` rows with images, one of which is missing, and what a trainer logged."""
    lines = []
    for i in range(N):
        pixels = np.random.default_rng(i).integers(0, 255, (30 + 5 * (i % 3), 40, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        text = "Which number replaces the " + "very " * (i % 6) + f"mark {i}?"
        row = {
            "id": f"s{i}",
            "question": text,
            "answer": "BCA"[i % 3],
            "source": "ab"[i % 2],
        }
        lines.append(row | {"choices": ["4", "12", "35"], "image": f"{i}.png"})
    lines[11]["image"] = "missing.png"
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rewards = [
        {"id": f"s{i}", "reward": float(i % 3 == 0), "step": 1} for i in range(N)
    ] * 4
    (folder / "rewards.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rewards))
    return path


class Canned:
    """Prepares samples that need no model: their numbers depend on their place alone."""

    def __init__(self, samples: Any, driver: Any, config: Any, **_: Any) -> None:
        self.samples, self.evidence = samples, config.evidence

    def __call__(self, i: int) -> Job:
        sample = self.samples[i]
        row = {"id": sample.id, "index": i, "evidence": self.evidence, "seconds": 0.0}
        if not isinstance(sample, Bad):
            row |= {"source": sample.source}
        if isinstance(sample, Bad) or i == 11:
            job = Job({**row, "status": "scored"}, sample)
            job.quarantine("image", "image_missing", "not there")
            return job
        images = [sha256(read_bytes(ref)).hexdigest() for ref in sample.images]
        row |= {"image_sha256": ",".join(images)}
        row |= {"sample_sha256": sample_sha256(sample, images)}
        return Job({**row, "status": "scored"}, sample)

    def close(self) -> None:
        pass


def can_score(scorer: Scorer, jobs: list[Job]) -> None:
    for job in jobs:
        i = job.row["index"]
        if scorer.config.evidence == "answer":
            job.row |= {"p_answer1": (i * 7 % 23) / 23, "p_answer0": (i * 5 % 23) / 29}
            job.row |= {"js": (i % 5) / 10, "forwards": 2}
            continue
        c1, c0 = i % 4, i % 3
        job.row |= {"c1": c1, "m1": 3, "c0": c0, "m0": 2, "forwards": 5, "n_drawn": 5}
        job.groups = 2
        job.rollouts = [
            {"id": job.row["id"], "index": i, "arm": arm, "number": number,
             "text": f"{i} {arm} " * (number + 1), "token_ids": [i, number],
             "finish_reason": "stop", "seed": i, "correct": number < right}
            for arm, right, many in (("image", c1, 3), ("counterfactual", c0, 2))
            for number in range(many)
        ]  # fmt: skip


def use(real: bool) -> None:
    """The model, or numbers that stand for what it would say."""
    filling.PARTIAL_SECONDS = 0
    canned = (Canned, can_score, lambda self, batch: len(batch) >= 2, lambda self: None)
    found: Any = REAL if real else canned
    filling.Preparation, filling.score_batch, Scorer.is_full, ModelDriver.check = found


class Nursery:
    def __init__(self, folder: Path) -> None:
        import torch

        torch.set_num_threads(1)
        self.data = make_data(folder)
        self.model, self.processor = rap.demo.tiny.tiny_qwen2_5_vl()
        self.shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self.shim.chaos_plan.argtypes = [
            ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_int,
        ]  # fmt: skip
        self.shim.chaos_count.restype = self.shim.chaos_of_kind.restype = ctypes.c_long

    def warm(self, orders: Sequence[dict[str, Any]]) -> None:
        """Import what these runs import, each in a child that says so: a run that is harmed
        then begins with its work."""
        known = set(sys.modules)
        for order in orders:
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(read)
                with contextlib.suppress(BaseException):
                    self._obey(order)
                os.write(write, " ".join(set(sys.modules) - known).encode())
                os._exit(0)
            os.close(write)
            with open(read) as file:
                names = file.read().split()
            os.waitpid(pid, 0)
            for name in sorted(names):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        gc.collect()
        gc.freeze()  # a collection in a child would copy every page of it

    def start(self, order: dict[str, Any]) -> int:
        """Fork a process for an order; its number."""
        pid = os.fork()
        if pid:
            return pid
        code = 70
        gc.disable()
        try:
            code = self._obey(order)
        except BaseException as error:  # said to the trial, which knows what may come
            _tell(order, f"{type(error).__mro__[0].__name__}: {error}")
        finally:
            os._exit(code)

    def _obey(self, order: dict[str, Any]) -> int:
        os.environ.update(order.get("environment", {}))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, on_sigterm)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        log = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        harm = order.get("harm", (0, 63, 0, 0))
        self.shim.chaos_plan(order["below"].encode(), *harm)
        code = self._run(order)
        self.shim.chaos_plan(b"", 0, 0, 0, 0)
        return code

    def _run(self, order: dict[str, Any]) -> int:
        try:
            if order["command"] in ("score", "ray", "model"):
                {"score": self._score, "ray": self._ray, "model": self._save}[
                    order["command"]
                ](order)
                code = 0
            else:
                code = _shell(order["words"])
        except Terminated:
            code = 143
        except KeyboardInterrupt:
            code = 130
        except Exception as error:
            self._count(order)
            _tell(order, f"{type(error).__name__}: {error}")
            return 1
        self._count(order)
        _tell(order, "")
        return code

    def _count(self, order: dict[str, Any]) -> None:
        order["count"] = self.shim.chaos_count()
        order["kinds"] = [self.shim.chaos_of_kind(i) for i in range(6)]

    def _score(self, order: dict[str, Any]) -> None:
        use(order["real"])
        options = {**OPTIONS, **order["options"], "store": order["store"]}
        model, processor = self.model, self.processor
        if "model" in order:  # as executor ray takes it
            model, processor = order["model"], None
        rap.score(model, processor, str(self.data), **options)

    def _save(self, order: dict[str, Any]) -> None:
        """The model as a folder, for commands that read one."""
        self.model.save_pretrained(order["below"])
        self.processor.save_pretrained(order["below"])

    def _ray(self, order: dict[str, Any]) -> None:
        """A driver at a cluster that is there, whose workers have the shim and a plan."""
        import ray

        ray.init(
            address=order["address"],
            runtime_env={"env_vars": order["of_workers"]},
            log_to_driver=False,
        )
        signal.signal(signal.SIGTERM, on_sigterm)  # which it took for itself
        options = {**OPTIONS, **order["options"], "store": order["store"]}
        try:
            rap.score(order["model"], None, str(self.data), executor="ray", **options)
        finally:
            ray.shutdown()


def _tell(order: dict[str, Any], text: str) -> None:
    """How it ended, beside what it said, where nothing is harmed."""
    with contextlib.suppress(OSError, MemoryError):
        Path(order["said"] + ".end").write_text(
            json.dumps(
                {
                    "count": order.get("count", 0),
                    "kinds": order.get("kinds", []),
                    "error": text,
                }
            )
        )


def _shell(words: Sequence[str]) -> int:
    try:
        rap.cli.commands.main(args=list(words))
    except SystemExit as ended:
        return int(ended.code or 0)
    raise AssertionError("the shell returned")


def main() -> None:
    nursery = Nursery(Path(sys.argv[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "warm" in order:
            nursery.warm(order["warm"])
            print("warm", flush=True)
        elif "wait" in order:
            _, status, used = os.wait4(order["wait"], 0)
            seconds = used.ru_utime + used.ru_stime
            print(os.waitstatus_to_exitcode(status), seconds, flush=True)
        else:
            print(nursery.start(order), flush=True)


if __name__ == "__main__":
    main()
