"""kill -9 at random moments, the same command again: the same bytes (faults 31, 32).

A child process builds the tiny model once and waits; for each run it forks, so that a run
starts in a moment and a kill hits scoring and not the import of torch. The run that is
killed is a process of its own, with its threads, its checker and its open files.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import rap
from rap.scores.store import ScoreStore
from rap.scores.table import VOLATILE_COLUMNS

KILLS = int(os.environ.get("RAP_KILLS", "5"))
SEED = int(os.environ.get("RAP_KILL_SEED", "7"))

N = 28
NURSERY = """
import os, sys, traceback
import numpy as np, torch
from PIL import Image
torch.set_num_threads(1)
import rap, rap.scoring, rap.model, rap.samples.images, rap.demo.tiny
import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl, transformers.generation
from tqdm import tqdm

folder, n = sys.argv[1], int(sys.argv[2])
rows = []
for i in range(n):
    rng = np.random.default_rng(i)
    pixels = rng.integers(0, 255, (40 + 9 * (i % 5), 60 + 7 * (i % 4), 3))
    path = os.path.join(folder, f"{i}.png")
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    text = "Which number replaces the " + "very " * (i % 6) + f"mark {i}?"
    rows.append({"id": f"s{i}", "question": text, "answer": "BCA"[i % 3],
                 "source": "ab"[i % 2], "choices": ["4", "12", "35"], "image": path})
rows[11]["image"] = os.path.join(folder, "missing.png")
rows[23]["answer"] = "nonsense"
model, processor = rap.demo.tiny.tiny_qwen2_5_vl()
print("ready", flush=True)
for line in sys.stdin:
    evidence, store, shard_size, seconds = line.split()
    pid = os.fork()
    if pid == 0:
        try:
            rap.scoring.filling.PARTIAL_SECONDS = float(seconds)
            rap.score(model, processor, rows, root=folder, store=store, evidence=evidence,
                      m1=3, m0=2, sampling=rap.Sampling(max_new_tokens=6),
                      shard_size=int(shard_size), batch_size=2,
                      max_bad_fraction=0.1, progress=False)
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    sys.stdin.readline()  # until then the pid stays the run's, even when it has ended
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Nursery:
    """The child that forks a run for each line it is sent."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join([str(Path(rap.__file__).parent.parent), *sys.path])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, str(folder), str(N)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(
        self, evidence: str, store: Path, shard_size: int = 4, seconds: float = 0
    ) -> int:
        """Begin a run; its pid, which stays its own until ``end``. ``seconds``: how often
        a shard in progress is kept; by default after each batch."""
        self._say(f"{evidence} {store} {shard_size} {seconds}")
        return int(self.process.stdout.readline())

    def end(self) -> int:
        """Wait for the run; its exit code, negative for a signal."""
        self._say("reap")
        return int(self.process.stdout.readline())

    def run(
        self, evidence: str, store: Path, kill_after: float | None = None, **options: float
    ) -> int:
        """Exit code of one run, killed if it still goes on after ``kill_after`` seconds."""
        pid = self.start(evidence, store, **options)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        return self.end()

    def _say(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(600)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    nursery = Nursery(tmp_path_factory.mktemp("images"))
    yield nursery
    nursery.close()


def finished(store: Path) -> dict[str, str]:
    """Digest of every finished shard, the clock readings left out."""
    digests = {}
    for path in sorted(store.glob("[sr]*.parquet")):  # not the shard in progress
        table = pq.read_table(path)
        clocks = [name for name in VOLATILE_COLUMNS if name in table.column_names]
        text = repr(table.drop_columns(clocks).to_pydict())
        digests[path.name] = hashlib.sha256(text.encode()).hexdigest()
    return digests


def selection_bytes(store: Path, out: Path) -> dict[str, bytes]:
    rap.choose(rap.Scores.load(store), budget=0.3).save(out)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param("rollouts", marks=pytest.mark.proof),
        "answer",
        pytest.param("cascade", marks=pytest.mark.proof),
    ],
)
def test_fault_31_kill_9_and_resume_end_in_the_same_bytes(nursery, tmp_path, evidence):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    started = time.monotonic()
    assert nursery.run(evidence, whole) == 0
    duration = time.monotonic() - started
    chance = random.Random(f"{SEED} {evidence}")
    killed = 0
    for _ in range(KILLS):
        before = finished(broken) if broken.exists() else {}
        code = nursery.run(evidence, broken, chance.uniform(0.02, 0.5) * duration)
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        after = finished(broken)
        # what was there is still there, unchanged
        assert before.items() <= after.items()
        if code == 0:  # it got through between two kills: begin again
            broken.rename(tmp_path / f"done{len(list(tmp_path.glob('done*')))}")
    assert killed >= KILLS // 2
    assert nursery.run(evidence, broken) == 0

    wanted = selection_bytes(whole, tmp_path / "wanted")
    table = rap.Scores.load(whole).table.drop_columns(list(VOLATILE_COLUMNS))
    assert table["code"].to_pylist()[11] == "image_missing"
    assert table["code"].to_pylist()[23] == "bad_answer"
    assert len(set(table["id"].to_pylist())) == N
    for store in [broken, *tmp_path.glob("done*")]:
        again = rap.Scores.load(store)
        assert again.table.drop_columns(list(VOLATILE_COLUMNS)).equals(table)
        rollouts = ScoreStore.load(whole).read_rollouts()
        if evidence in ("rollouts", "cascade"):
            assert again.rollouts.equals(rollouts)
        else:
            assert again.rollouts is None and rollouts is None
        assert finished(store) == finished(whole)
        assert selection_bytes(store, tmp_path / f"got-{store.name}") == wanted
        for leftover in ("*.corrupt", ".*.tmp", "partial*", "*.old"):
            assert not list(store.glob(leftover))


@pytest.mark.parametrize(
    "evidence", [pytest.param("rollouts", marks=pytest.mark.proof), "answer"]
)
def test_fault_32_interrupt_then_resume(nursery, tmp_path, evidence):
    """Ctrl-C: KeyboardInterrupt comes out of ``score``; all but the batch at hand stays.

    One shard of all, which is kept only because the run ends in order."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    started = time.monotonic()
    assert nursery.run(evidence, whole, shard_size=N, seconds=1e9) == 0
    duration = time.monotonic() - started
    kept, part = [0], 0.6
    while len(kept) < 3:
        pid = nursery.start(evidence, broken, shard_size=N, seconds=1e9)
        time.sleep(part * duration)
        os.kill(pid, signal.SIGINT)
        sent = time.monotonic()
        assert nursery.end() in (0, 130)
        assert time.monotonic() - sent < 60
        begun = broken.is_dir() and any(broken.iterdir())
        n_kept = ScoreStore.load(broken).n_kept() if begun else 0
        if n_kept == 0:  # the machine has become slower than it was for ``whole``
            part *= 2
            assert part < 10, "nothing kept in ten times the whole run's time"
            continue
        kept.append(n_kept)
    assert 0 < kept[1] <= kept[2], kept
    assert nursery.run(evidence, broken, shard_size=N, seconds=1e9) == 0
    assert finished(broken) == finished(whole)
    assert sorted(p.name for p in broken.iterdir()) == sorted(
        p.name for p in whole.iterdir()
    )
