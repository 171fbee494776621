"""Data and settings of tests/test_executors.py, for the processes that it starts, too."""

from __future__ import annotations

import json
import os
import sys
import traceback

import numpy as np
from PIL import Image

import rap

N = 24
OPTIONS = {
    "evidence": "answer",
    "shard_size": 4,
    "batch_size": 2,
    "m1": 3,
    "m0": 2,
    "sampling": {"max_new_tokens": 6},
    "max_bad_fraction": 0.1,
}


def make_rows(folder: object) -> list[dict]:
    """``N`` rows with images in ``folder``, one of which is missing."""
    os.makedirs(str(folder), exist_ok=True)
    rows = []
    for i in range(N):
        path = os.path.join(str(folder), f"{i}.png")
        if not os.path.exists(path):
            rng = np.random.default_rng(i)
            pixels = rng.integers(0, 255, (40 + 9 * (i % 5), 60 + 7 * (i % 4), 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        text = "Which number replaces the " + "very " * (i % 6) + f"mark {i}?"
        row = {"id": f"s{i}", "question": text, "answer": "BCA"[i % 3], "image": path}
        rows.append(row | {"source": "ab"[i % 2], "choices": ["4", "12", "35"]})
    rows[11]["image"] = os.path.join(str(folder), "missing.png")
    return rows


def score_rows(model, processor, folder: str, store: str, **more):  # type: ignore[no-untyped-def]
    options = {"root": folder, "store": store, "progress": False, **OPTIONS, **more}
    return rap.score(model, processor, make_rows(folder), **options)


def fork_runs(folder: str) -> None:
    """Build the model once, then fork a process for every line of stdin."""
    import torch
    import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl  # noqa: F401
    from tqdm import tqdm  # noqa: F401

    import rap.demo.tiny
    from rap.scoring import filling

    torch.set_num_threads(1)
    make_rows(folder)
    model, processor = rap.demo.tiny.tiny_qwen2_5_vl()
    filling.PARTIAL_SECONDS = 0
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = 0
            try:
                os.environ.update(asked["environment"])
                score_rows(model, processor, folder, asked["store"], **asked["options"])
            except KeyboardInterrupt:
                code = 130
            except BaseException:
                traceback.print_exc()
                code = 1
            os._exit(code)
        print(pid, flush=True)


def score_by_torchrun(folder: str, store: str) -> None:
    """One rank: its number, what it would choose, what it was told of the cost."""
    import torch

    import rap.demo.tiny

    torch.set_num_threads(1)
    model, processor = rap.demo.tiny.tiny_qwen2_5_vl()
    scores = score_rows(model, processor, folder, store, executor="env")
    assert not torch.distributed.is_initialized()
    found = {"ids": rap.choose(scores, budget=0.3).ids, "cost": dict(scores.meta["cost"])}
    with open(os.path.join(folder, f"rank{os.environ['RANK']}.json"), "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    {"fork": fork_runs, "torchrun": score_by_torchrun}[sys.argv[1]](*sys.argv[2:])
