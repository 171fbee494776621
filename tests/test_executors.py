"""Many processes score one data set: the same bytes as one, whoever dies.

Processes are forked from a child that has built the tiny model once (as in
tests/test_resume.py), each with the variables of a launcher; torchrun itself runs once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from executor_inputs import OPTIONS, make_rows

import rap
import rap.demo.tiny
from rap.cli.commands import main
from rap.config import ExecutorConfig, ExecutorName, ExecutorOptions, ScoreConfig
from rap.demo.model import WEIGHTS
from rap.errors import RapConfigError, RapInputError, RapStoreError
from rap.samples import index, jsonlines
from rap.samples.jsonlines import JsonlRows
from rap.samples.sampleset import open_samples
from rap.scores.sealing import finish
from rap.scores.shardplan import INDEX, NAME, read_plan
from rap.scores.store import ScoreStore
from rap.scores.table import VOLATILE_COLUMNS
from rap.scoring import filling
from rap.scoring.executors import EXECUTORS
from rap.scoring.executors.env import order, own
from rap.scoring.executors.ranks import Rank, find_device, find_rank
from rap.scoring.plan import rounds_of
from rap.scoring.run import plan, score, select

KILLS = int(os.environ.get("RAP_KILLS", "5"))
PATIENCE = 900.0

INPUTS = str(Path(__file__).with_name("executor_inputs.py"))


class Nursery:
    """The child that forks a process for each line it is sent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, INPUTS, "fork", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, store: Path, rank: str | None = None, **options: object) -> int:
        """A process that scores, with executor env where ``rank`` is "r/n"; its pid, which
        stays its own until ``end``."""
        variables = {}
        if rank is not None:
            r, n = rank.split("/")
            variables = {"RANK": r, "WORLD_SIZE": n}
            options = {"executor": "env", **options}
        asked = {"store": str(store), "options": options, "environment": variables}
        return int(self._say(asked))

    def end(self, pid: int) -> int:
        """Wait for a process; its exit code, negative for a signal."""
        return int(self._say({"wait": pid}))

    def run(self, store: Path, rank: str | None = None, **options: object) -> int:
        return self.end(self.start(store, rank, **options))

    def _say(self, asked: dict) -> str:
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(600)
        self.process.stdout.close()


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(rap.__file__).parent.parent), *sys.path])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | more


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    nursery = Nursery(tmp_path_factory.mktemp("images"))
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory) -> Path:
    """What one process makes of it."""
    store = tmp_path_factory.mktemp("whole") / "store"
    assert nursery.run(store) == 0
    return store


@pytest.fixture(scope="module")
def whole_with(nursery, whole, tmp_path_factory) -> Callable[[str], Path]:
    """The same with another evidence, made once each."""
    made = {"answer": whole}

    def make(evidence: str) -> Path:
        if evidence not in made:
            made[evidence] = tmp_path_factory.mktemp(evidence) / "store"
            assert nursery.run(made[evidence], evidence=evidence) == 0
        return made[evidence]

    return make


@pytest.fixture(scope="module")
def tiny():
    return rap.demo.tiny.tiny_qwen2_5_vl()


def shards(store: Path) -> dict[str, str]:
    """Digest of every finished shard, the clock readings left out."""
    digests = {}
    for path in sorted(store.rglob("[sr]*.parquet")):  # no shard in progress
        table = pq.read_table(path)
        clocks = [name for name in VOLATILE_COLUMNS if name in table.column_names]
        text = repr(table.drop_columns(clocks).to_pydict())
        digest = hashlib.sha256(text.encode()).hexdigest()
        digests[str(path.relative_to(store))] = digest
    return digests


def selection(store: Path, out: Path) -> dict[str, bytes]:
    rap.choose(rap.Scores.load(store), budget=0.3).save(out)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def assert_same(store: Path, whole: Path, folder: Path) -> None:
    """The same shards, the same selection, nothing left over."""
    assert shards(store) == shards(whole)
    name = f"{store.name}-{len(list(folder.iterdir()))}"
    assert selection(store, folder / name) == selection(whole, folder / f"whole-{name}")
    for leftover in ("*.corrupt", ".*.tmp", "partial*", "*.old", "claims/*"):
        assert not list(store.rglob(leftover))


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


# ---------------------------------------------------------------- settings


def test_executors_settings_and_options_go_together() -> None:
    assert list(EXECUTORS) == list(get_args(ExecutorName))
    fields = ExecutorConfig.__dataclass_fields__
    # with executor ray ``workers`` are processes, else they are ScoreConfig's threads
    options = [name for name in fields if name != "workers"]
    assert list(ExecutorOptions.__annotations__) == options
    others = set(ScoreConfig.__dataclass_fields__)
    others |= set(rap.ChooseConfig.__dataclass_fields__)
    assert others & set(fields) == {"workers"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"executor": "slurm"}, "executor = 'slurm': expected one of"),
        ({"executor": "env", "shard": "4/4"}, "shard = '4/4': expected None or i/n"),
        ({"executor": "env", "shard": "1"}, "shard = '1': expected"),
        ({"executor": "env", "shard": "-1/4"}, "shard = '-1/4': expected"),
        ({"executor": "env", "lease": 0}, "lease = 0: expected seconds > 0"),
        ({"shard": "0/4"}, "shard = '0/4': executor 'local' takes none"),
        ({"steal": False}, "steal = False: executor 'local' takes none"),
        ({"lease": 5}, "lease = 5: executor 'local' takes none"),
    ],
)
def test_settings_that_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(RapConfigError) as refused:
        ExecutorConfig(**settings)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Rank(3, 8, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2"}, Rank(3, 8, 2)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8"}, Rank(5, 8)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "5",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "3",
            },
            Rank(2, 4),
        ),
        (
            {
                "SLURM_ARRAY_TASK_ID": "16",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "4",
                "SLURM_ARRAY_TASK_STEP": "4",
            },
            Rank(3, 4),
        ),
        (  # torchrun in every task of an array
            {
                "SLURM_ARRAY_TASK_ID": "2",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
                "RANK": "1",
                "WORLD_SIZE": "4",
                "LOCAL_RANK": "1",
            },
            Rank(9, 12, 1),
        ),
    ],
)
def test_a_rank_is_what_the_launcher_says(variables: dict, found: Rank) -> None:
    assert find_rank(variables) == found
    assert find_rank(variables, "2/5") == Rank(2, 5, found.local)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "nobody says which process this is"),
        ({"LOCAL_RANK": "0"}, "nobody says which process this is"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch numbers its processes"),
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK = 2: expected less than WORLD_SIZE = 2"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK = 'x': expected a number"),
        (
            {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "3"},
            "give --shard i/n",
        ),
    ],
)
def test_no_rank_is_said_and_never_taken_for_0(variables: dict, says: str) -> None:
    with pytest.raises(RapConfigError) as refused:
        find_rank(variables)
    assert says in str(refused.value)


def test_a_device_for_each_process_of_a_machine() -> None:
    assert [find_device(i, 4) for i in range(4)] == [f"cuda:{i}" for i in range(4)]
    assert find_device(3, 1) == "cuda:0"  # its own is all it sees
    assert find_device(None, 4) == find_device(2, 0) == "auto"
    with pytest.raises(RapConfigError, match="LOCAL_RANK = 4: this machine has 4 devices"):
        find_device(4, 4)


@pytest.mark.parametrize(("n", "world"), [(10, 1), (10, 3), (2, 5), (7, 7)])
def test_every_shard_is_somebody_s_own_and_asked_for_once(n: int, world: int) -> None:
    ranks = [Rank(r, world) for r in range(world)]
    assert sorted(k for rank in ranks for k in own(n, rank)) == list(range(n))
    for rank in ranks:
        asked = list(order(n, rank, True))
        assert sorted(asked) == list(range(n))
        assert asked[: len(own(n, rank))] == list(order(n, rank, False))


# ---------------------------------------------------------------- the same bytes


def test_torchrun_with_two_ranks(whole, nursery, tmp_path) -> None:
    """As a user starts it; every rank gets the whole scores, and no process group."""
    store = tmp_path / "store"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--master-port", "0", INPUTS, "torchrun", str(nursery.folder)]
    done = subprocess.run(
        [*launcher, str(store)], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_same(store, whole, tmp_path)
    scores = rap.Scores.load(whole)
    for rank in ("0", "1"):
        said = json.loads((nursery.folder / f"rank{rank}.json").read_text())
        assert said["ids"] == rap.choose(scores, budget=0.3).ids
        assert said["cost"]["samples"] == 24 and said["cost"]["forwards"] == 46


@pytest.mark.parametrize("evidence", ["answer", "rollouts", "cascade"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers(nursery, whole_with, tmp_path, evidence, workers) -> None:
    store = tmp_path / "store"
    ranks = [f"{r}/{workers}" for r in range(workers)]
    started = [nursery.start(store, rank, evidence=evidence) for rank in ranks]
    assert [nursery.end(pid) for pid in started] == [0] * workers
    assert_same(store, whole_with(evidence), tmp_path)
    if evidence == "rollouts":
        drawn = read_plan(store).drawn
        kept = ScoreStore.load(store).read_rollouts()
        assert drawn.rollouts == kept.num_rows > 0


@pytest.mark.proof
def test_fault_31_workers_killed_at_random_moments(nursery, whole, tmp_path) -> None:
    """``RAP_KILLS`` times two; 20 in a release."""
    chance = random.Random("executors 7")
    started = time.monotonic()
    assert nursery.run(tmp_path / "timed", "0/1") == 0
    duration = time.monotonic() - started
    kills = done = 0
    while kills < 2 * KILLS:
        store = tmp_path / f"store{done}"
        done += 1
        assert done < 20 * KILLS
        pids = [nursery.start(store, f"{r}/2") for r in range(2)]
        for pid in chance.sample(pids, chance.randint(1, 2)):
            time.sleep(chance.uniform(0.02, 0.4) * duration)
            os.kill(pid, signal.SIGKILL)
        codes = [nursery.end(pid) for pid in pids]
        assert set(codes) <= {0, -signal.SIGKILL}
        kills += sum(code != 0 for code in codes)
        if codes.count(0) == 0 or chance.random() < 0.3:
            executor = chance.choice(["local", "env"])  # whoever goes on
            assert nursery.run(store, "0/3" if executor == "env" else None) == 0
        assert_same(store, whole, tmp_path)


def test_a_coordinator_that_is_killed_is_replaced(nursery, whole, tmp_path) -> None:
    for claim in ("plan", "seal"):
        store = tmp_path / claim
        pid = nursery.start(store, "0/2")
        until(lambda path=store / "claims" / claim: path.exists())
        os.kill(pid, signal.SIGKILL)
        nursery.end(pid)
        assert nursery.run(store, "1/2") == 0
        assert_same(store, whole, tmp_path)


def test_another_executor_goes_on_either_way(nursery, whole, tmp_path) -> None:
    for first, second in ((None, "1/2"), ("0/2", None)):
        store = tmp_path / f"{second is None}"
        pid = nursery.start(store, first)
        until(lambda path=store: len(list(path.glob("scores-*"))) >= 2)
        os.kill(pid, signal.SIGKILL)
        nursery.end(pid)
        before = shards(store)
        assert nursery.run(store, second) == 0
        assert before.items() <= shards(store).items()
        assert_same(store, whole, tmp_path)
        assert (store / NAME).exists() == (second is not None)


def test_fault_32_ctrl_c_leaves_a_store_that_goes_on(nursery, whole, tmp_path) -> None:
    store = tmp_path / "store"
    pid = nursery.start(store, "0/2")
    until(lambda: len(list(store.glob("*.parquet"))) >= 2)
    os.kill(pid, signal.SIGINT)
    assert nursery.end(pid) in (0, 130)
    assert not list(store.glob("claims/*"))
    assert nursery.run(store, "1/2") == 0
    assert_same(store, whole, tmp_path)


def test_a_rank_that_never_comes_and_one_that_comes_late(
    nursery, whole, tiny, tmp_path, monkeypatch
) -> None:
    store = tmp_path / "store"
    assert nursery.run(store, "2/3") == 0  # ranks 0 and 1 never come
    assert_same(store, whole, tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("nothing was left to score")

    monkeypatch.setattr(filling, "score_batch", never)
    late = run_here(tiny, nursery, store, executor="env", shard="1/3")
    assert late.table.equals(rap.Scores.load(store).table)
    assert late.meta["counts"] == {"quarantined_image_missing": 1, "scored": 23}
    assert late.meta["cost"]["forwards"] == 46 and len(late.dataset) == 24


# ---------------------------------------------------------------- refused


def run_here(tiny, nursery, store: Path | None, rows=None, **more):
    """`score` in this process."""
    rows = make_rows(nursery.folder) if rows is None else rows
    options = {"root": nursery.folder, "store": store, "progress": False, **OPTIONS}
    return score(*tiny, rows, **options | more)


def plan_here(tiny, nursery, store: Path, rows=None, **more):
    rows = make_rows(nursery.folder) if rows is None else rows
    options = {"root": nursery.folder, "store": store, **OPTIONS}
    return plan(*tiny, rows, **options | more)


def test_ranks_that_disagree_with_the_plan(tiny, nursery, whole, tmp_path) -> None:
    store = tmp_path / "store"
    made = plan_here(tiny, nursery, store)
    assert made.n_samples == 24 and made.shard_size == 4 and len(set(made.shards)) == 6
    assert read_plan(store) == made
    env = {"executor": "env", "shard": "1/2"}
    with pytest.raises(RapConfigError, match="rank 1 is not of .*config.seed: 1 here, 0"):
        run_here(tiny, nursery, store, seed=1, **env)
    with pytest.raises(RapConfigError, match="rank 1 .*shard_size: 8 here, 4 in the plan"):
        run_here(tiny, nursery, store, shard_size=8, **env)
    other = rap.demo.tiny.tiny_qwen2_5_vl(seed=1)
    with pytest.raises(RapConfigError, match="rank 1 .*model's weights are others"):
        run_here(other, nursery, store, **env)
    rows = make_rows(nursery.folder)
    with pytest.raises(RapConfigError, match="rank 1 .*n_samples: 23 here, 24 in the plan"):
        run_here(tiny, nursery, store, rows[:-1], **env)
    renamed = [{("q" if k == "question" else k): v for k, v in r.items()} for r in rows]
    with pytest.raises(RapConfigError, match="rank 1 .*data.columns.question: "):
        run_here(tiny, nursery, store, renamed, columns={"question": "q"}, **env)
    assert not ScoreStore.load(store).finished()

    changed = [dict(row) for row in rows]
    changed[21]["question"] += " Say it."
    with pytest.raises(RapConfigError, match=r"rank 1: dataset: .*20 to 23 \(shard 5\)"):
        run_here(tiny, nursery, store, changed, **env)
    assert len(ScoreStore.load(store).finished()) < 6  # shards that are the same
    assert not list(store.glob("claims/*"))
    scores = run_here(tiny, nursery, store, **env)
    assert len(scores) == 24
    assert_same(store, whole, tmp_path)


def test_a_data_set_that_changed_between_two_runs(tiny, nursery, tmp_path, caplog) -> None:
    """A sealed store is opened again for it, and keeps what is unchanged."""
    rows = make_rows(nursery.folder)
    store = tmp_path / "store"
    env = {"executor": "env", "shard": "0/1"}
    names = ["id", "p_answer1"]
    before = run_here(tiny, nursery, store, **env).table.select(names).to_pylist()
    changed = [*rows[:20], {**rows[20], "question": "Another one?"}, *rows[21:]]
    scores = run_here(tiny, nursery, store, changed, **env)
    assert "samples are as they were" in caplog.text
    now = scores.table.select(names).to_pylist()
    differ = [a["id"] for a, b in zip(now, before, strict=True) if a != b]
    assert differ == ["s20"]
    fresh = run_here(tiny, nursery, tmp_path / "fresh", changed)
    assert scores.table["sample_sha256"].equals(fresh.table["sample_sha256"])


def unfinish(store: Path, lost: int) -> None:
    """The sealed store as a worker leaves it that is killed before its last shard."""
    sealed = json.loads((store / "plan.json").read_text())
    (store / "plan.json").write_text(json.dumps(sealed | {"sealed": None}))
    for name in ("scores", "rollouts"):
        (store / f"{name}-{lost:05d}.parquet").unlink(missing_ok=True)


@pytest.mark.parametrize("kept_index", [False, True])
def test_rows_that_changed_in_a_finished_shard(tiny, nursery, tmp_path, kept_index) -> None:
    """A worker that goes on has none of them to score, and is refused all the same, also
    where another process has looked through the rows since."""
    store, data = tmp_path / "store", tmp_path / "rows.jsonl"
    rows, env = make_rows(nursery.folder), {"executor": "env", "shard": "0/1"}
    data.write_bytes(lines_of(rows))
    run_here(tiny, nursery, store, data, **env)
    unfinish(store, 5)
    changed = [rows[0] | {"question": "Another one?"}, *rows[1:]]
    data.write_bytes(lines_of(changed))
    if kept_index:
        samples = open_samples(data, root=nursery.folder)
        index.save(samples, index.build(samples, 4), store / INDEX)
    with pytest.raises(RapConfigError, match="rank 0.* dataset: "):
        run_here(tiny, nursery, store, data, **env)
    plan_here(tiny, nursery, store, data)
    scores = run_here(tiny, nursery, store, data, **env)
    fresh = run_here(tiny, nursery, tmp_path / "fresh", data)
    assert scores.table["sample_sha256"].equals(fresh.table["sample_sha256"])


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.proof
def test_a_cascade_s_later_rounds_are_planned_anew(
    tiny, nursery, tmp_path, planned
) -> None:
    """Changed data are found where the first round has none of them, and the last is in
    progress."""
    rows = make_rows(nursery.folder)
    store, env = tmp_path / "store", {"executor": "env", "shard": "0/1"}
    whole = run_here(tiny, nursery, store, evidence="cascade", **env)
    config = ScoreConfig(evidence="cascade")
    rounds = rounds_of(open_samples(rows, root=nursery.folder), config)
    early = {int(i) for part in rounds for i in part.places}
    status = whole.table["status"].to_pylist()
    (at, *_) = (i for i, s in enumerate(status) if i not in early and s == "scored")
    unfinish(store, 5 if at // 4 != 5 else 4)
    changed = [*rows[:at], rows[at] | {"question": "Another one?"}, *rows[at + 1 :]]
    if planned:
        plan_here(tiny, nursery, store, changed, evidence="cascade")
    scores = run_here(tiny, nursery, store, changed, evidence="cascade", **env)
    fresh = run_here(tiny, nursery, tmp_path / "fresh", changed, evidence="cascade")
    assert scores.table["sample_sha256"].equals(fresh.table["sample_sha256"])
    assert scores.table["p_answer1"].equals(fresh.table["p_answer1"])


@pytest.mark.proof
def test_a_cascade_of_one_sample(tiny, nursery, tmp_path) -> None:
    """Whether or not its id falls to a round."""
    rows = make_rows(nursery.folder)
    for i in range(8):
        scores = run_here(tiny, nursery, tmp_path / str(i), [rows[i]], evidence="cascade")
        assert scores.table["status"].to_pylist() == ["scored"]


def lines_of(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_kept(path: Path, text: bytes) -> None:
    """Write a file anew that keeps the time of its last change."""
    seen = path.stat()
    assert seen.st_size == len(text)
    path.write_bytes(text)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def test_a_worker_reads_the_rows_of_its_shards(
    tiny, nursery, whole, tmp_path, monkeypatch
) -> None:
    """What is known of all rows was found when the run was planned."""
    store, data = tmp_path / "store", tmp_path / "rows.jsonl"
    rows = make_rows(nursery.folder)
    data.write_bytes(lines_of(rows))
    plan_here(tiny, nursery, store, data)
    content = open_samples(data, root=nursery.folder).content_sha256
    asked: list[tuple[int, int | None]] = []
    parts = JsonlRows.parts

    def noted(self, names, start=0, stop=None):
        asked.append((start, stop))
        return parts(self, names, start, stop)

    monkeypatch.setattr(JsonlRows, "parts", noted)
    monkeypatch.setattr(jsonlines, "line_index", None)
    part = {"executor": "env", "steal": False}
    assert len(run_here(tiny, nursery, store, data, shard="0/2", **part)) == 12
    assert set(asked) == {(0, 4), (8, 12), (16, 20)}
    asked.clear()
    scores = run_here(tiny, nursery, store, data, shard="1/2", **part)
    assert set(asked) == {(4, 8), (12, 16), (20, 24)}
    assert scores.meta["data"]["content_sha256"] == content
    assert shards(store) == shards(whole)


@pytest.mark.parametrize("field", ["question", "id"])
def test_what_is_kept_of_a_data_set_is_not_believed(
    tiny, nursery, tmp_path, field: str
) -> None:
    """Files of the same size and time, other rows: refused by their content."""
    store, data = tmp_path / "store", tmp_path / "rows.jsonl"
    rows = make_rows(nursery.folder)
    data.write_bytes(lines_of(rows))
    plan_here(tiny, nursery, store, data)
    rows[21][field] = rows[21][field][:-1] + "~"
    write_kept(data, lines_of(rows))
    env = {"executor": "env", "shard": "1/2"}
    with pytest.raises(RapConfigError, match=r"rank 1: dataset: .*20 to 23 \(shard 5\)"):
        run_here(tiny, nursery, store, data, **env)
    (store / NAME).write_text((store / NAME).read_text().replace('"rows"', '"older"'))
    with pytest.raises(RapInputError, match="has changed, though size and time"):
        run_here(tiny, nursery, store, data, **env)  # it would plan again
    plan_here(tiny, nursery, store, data)  # which reads every row
    assert len(run_here(tiny, nursery, store, data, **env)) == 24


def test_a_plan_of_other_hashes_is_made_again(tiny, nursery, whole, tmp_path) -> None:
    store = tmp_path / "store"
    made = plan_here(tiny, nursery, store)
    hashes = ("0" * 64,) * len(made.shards)
    dataclasses.replace(made, shards=hashes, hashed="").write(store)
    assert len(run_here(tiny, nursery, store, executor="env", shard="0/1")) == 24
    assert read_plan(store).shards == made.shards
    assert_same(store, whole, tmp_path)


def test_fault_35_two_coordinators(tiny, nursery, tmp_path) -> None:
    store = tmp_path / "store"
    pid = nursery.start(store, "0/2")
    try:
        until(lambda: list(store.glob("claims/[0-9]*")))
        os.kill(pid, signal.SIGSTOP)  # it lives
        with pytest.raises(RapStoreError, match="workers are scoring .*rank 0, process"):
            plan_here(tiny, nursery, store)
        with pytest.raises(RapStoreError, match="workers are scoring .*rank 0, process"):
            run_here(tiny, nursery, store)
        with pytest.raises(RapStoreError, match="workers are scoring .*rank 0, process"):
            finish(store)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert nursery.end(pid) == 0
    made = read_plan(store)
    with ScoreStore.open(store, made.fingerprint, 24, 4, data=made.data):
        # one process has it alone
        with pytest.raises(RapStoreError, match="this process has the store open"):
            run_here(tiny, nursery, store, executor="env", shard="0/2")
    assert len(run_here(tiny, nursery, store, executor="env", shard="0/2")) == 24


def test_env_needs_a_rank_and_a_folder(tiny, nursery, tmp_path, monkeypatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK")):
            monkeypatch.delenv(name)
    with pytest.raises(RapConfigError, match="nobody says which process"):
        run_here(tiny, nursery, tmp_path / "s", executor="env")
    with pytest.raises(RapConfigError, match="executor 'env' needs a folder"):
        run_here(tiny, nursery, None, executor="env", shard="0/1")
    with pytest.raises(
        RapConfigError, match="steal = False: evidence 'cascade' scores its rounds"
    ):
        more = {"executor": "env", "shard": "0/2", "steal": False}
        run_here(tiny, nursery, tmp_path / "s", evidence="cascade", **more)
    with pytest.raises(RapConfigError, match="steal = False: rap.select needs all scores"):
        select(*tiny, [], executor="env", shard="0/2", steal=False)
    assert not (tmp_path / "s").exists()


# ---------------------------------------------------------------- parts, limits


def test_without_stealing_each_has_its_part(tiny, nursery, whole, tmp_path) -> None:
    store = tmp_path / "store"
    part = {"executor": "env", "steal": False}
    first = run_here(tiny, nursery, store, shard="1/2", **part)
    assert first.meta["part"] == "1/2" and len(first) == 12
    index = first.table["index"].to_pylist()
    assert index == [i for i in range(24) if i // 4 % 2 == 1]
    assert read_plan(store).sealed is None
    last = run_here(tiny, nursery, store, shard="0/2", **part)  # the last one seals
    assert "part" not in last.meta and len(last) == 24
    assert_same(store, whole, tmp_path)


def test_limits_hold_for_the_whole_not_for_a_part(tiny, nursery, tmp_path) -> None:
    rows = make_rows(nursery.folder)
    for i in (0, 1):  # with row 11: 3 of 24, two of them in the shard of rank 0
        rows[i] = {**rows[i], "answer": "nonsense"}
    part = {"executor": "env", "steal": False, "max_bad_fraction": 0.13}
    run_here(tiny, nursery, tmp_path / "a", rows, shard="0/6", **part)
    rest = {"executor": "env", "max_bad_fraction": 0.13}
    assert len(run_here(tiny, nursery, tmp_path / "a", rows, shard="1/6", **rest)) == 24
    part["max_bad_fraction"] = 0.1
    for shard in ("0/6", "1/6", "2/6", "3/6", "4/6"):
        run_here(tiny, nursery, tmp_path / "b", rows, shard=shard, **part)
    with pytest.raises(RapInputError, match="3 of 24 samples are bad, more than max_bad"):
        run_here(tiny, nursery, tmp_path / "b", rows, shard="5/6", **part)
    with pytest.raises(RapInputError, match="3 of 24 samples are bad, more than max_bad"):
        run_here(tiny, nursery, tmp_path / "b", rows, shard="0/6", **part)
    with pytest.raises(RapInputError, match="3 of 24 samples are bad"):
        finish(tmp_path / "b", max_bad_fraction=0.1)
    scores = rap.Scores.load(tmp_path / "b")
    (warning,) = (w for w in rap.choose(scores).warnings if "refused" in w)
    assert "the run that made these scores was refused: 3 of 24 samples are bad" in warning
    assert finish(tmp_path / "b", max_bad_fraction=0.13)
    assert "refused" not in rap.Scores.load(tmp_path / "b").meta


def test_what_is_to_be_tried_again_is_planned(tiny, nursery, tmp_path, caplog) -> None:
    """A sealed store stays as it is; ``plan`` opens it for what could not be scored."""
    store = tmp_path / "store"
    env = {"executor": "env", "shard": "0/1"}
    rows = make_rows(nursery.folder)
    gone = Path(rows[11]["image"])
    run_here(tiny, nursery, store, **env)
    try:
        gone.write_bytes(Path(rows[10]["image"]).read_bytes())
        scores = run_here(tiny, nursery, store, retry_quarantined=True, **env)
        assert "is sealed, so nothing is tried again" in caplog.text
        assert scores.meta["counts"] == {"quarantined_image_missing": 1, "scored": 23}
        plan_here(tiny, nursery, store, retry_quarantined=True)
        assert ScoreStore.load(store).missing() == [2]
        scores = run_here(tiny, nursery, store, **env)
        assert scores.meta["counts"] == {"scored": 24}
    finally:
        gone.unlink()


@pytest.mark.proof
def test_every_round_of_a_cascade_is_tried_again(tiny, nursery, tmp_path) -> None:
    """``plan`` opens the later rounds, too; who scores them then was not asked to."""
    rows = make_rows(nursery.folder)
    config = ScoreConfig(evidence="cascade")
    first, *_ = rounds_of(open_samples(rows, root=nursery.folder), config)
    at = next(i for i in range(len(rows)) if i not in first.places and i != 11)
    late = tmp_path / "late.png"
    rows[at] = rows[at] | {"image": str(late)}
    env = {"executor": "env", "shard": "0/1", "evidence": "cascade", "root": "/"}
    store = tmp_path / "store"
    before = run_here(tiny, nursery, store, rows, **env)
    assert before.meta["counts"] == {"quarantined_image_missing": 2, "scored": 22}
    late.write_bytes(Path(rows[10]["image"]).read_bytes())
    planned = {"evidence": "cascade", "root": "/", "retry_quarantined": True}
    plan_here(tiny, nursery, store, rows, **planned)
    scores = run_here(tiny, nursery, store, rows, **env)
    assert scores.meta["counts"] == {"quarantined_image_missing": 1, "scored": 23}


def test_the_size_of_a_shard_is_the_store_s_own(tiny, nursery, tmp_path, monkeypatch):
    """Of a new store it follows the number of samples; 256, as ever, for so few."""
    rows = make_rows(nursery.folder)
    run_here(tiny, nursery, tmp_path / "small", rows)
    run_here(tiny, nursery, tmp_path / "new", rows, shard_size=None)
    with ScoreStore.load(tmp_path / "new") as store:
        assert store.shard_size == store.fingerprint["config"]["shard_size"] == 256
    monkeypatch.setattr(filling, "score_batch", None)  # nothing is left to score
    again = run_here(tiny, nursery, tmp_path / "small", rows, shard_size=None)
    assert again.meta["fingerprint"]["config"]["shard_size"] == 4
    with pytest.raises(RapConfigError, match="shard_size: 8 here, 4 in the store"):
        run_here(tiny, nursery, tmp_path / "small", rows, shard_size=8)


def test_profiles_of_all_processes_are_summed(nursery, tmp_path) -> None:
    store = tmp_path / "store"
    pids = [nursery.start(store, f"{r}/2", profile=True) for r in range(2)]
    assert [nursery.end(pid) for pid in pids] == [0, 0]
    measured = rap.Scores.load(store).meta["profile"]
    assert measured["runs"] == 2 and measured["samples"] == 24


def test_the_hash_of_a_shard_knows_what_a_score_depends_on(nursery) -> None:
    rows = make_rows(nursery.folder)

    def digest(rows: list[dict], columns: tuple[str, ...] = ()) -> str:
        samples = open_samples(rows, root=nursery.folder)
        return samples.shard_hashes([range(8, 12)], columns)[0]

    known = digest(rows)
    assert digest([dict(row) for row in rows]) == known
    others = {"source": "z", "extra": 5}
    for name, value in others.items():  # no score depends on it
        assert digest([*rows[:9], {**rows[9], name: value}, *rows[10:]]) == known
    for name, value in (
        ("question", "What?"),
        ("answer", "C"),
        ("id", "other"),
        ("choices", ["4", "12", "36"]),
        ("image", rows[3]["image"]),
        ("answer", "nonsense"),
    ):
        assert digest([*rows[:9], {**rows[9], name: value}, *rows[10:]]) != known
    assert digest([*rows[:8], rows[9], rows[8], *rows[10:]]) != known
    assert digest([*rows[:2], {**rows[2], "question": "What?"}, *rows[3:]]) == known
    with_extra = [*rows[:9], {**rows[9], "extra": 5}, *rows[10:]]
    assert digest(with_extra, ("extra",)) != digest(rows, ("extra",))


# ---------------------------------------------------------------- the shell


def shell(*args: object, code: int = 0):
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == code, result.output
    return result


def test_the_shell_plans_scores_in_parts_and_finishes(nursery, tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    rows = make_rows(nursery.folder)[:8]
    data = nursery.folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [data, "--model", WEIGHTS, "--device", "cpu", "--evidence", "answer"]
    given += ["--shard-size", 2]
    store = tmp_path / "store"
    said = json.loads(shell("plan", *given, "--store", store, "--json").stdout)
    assert said["shards"] == 4 and said["samples"] == 8 and said["shard_size"] == 2
    output = shell("score", *given, "--store", store, "--executor", "env", code=2).output
    assert "nobody says which process" in output
    part = ["--store", store, "--executor", "env", "--no-steal", "--shard"]
    output = shell("score", *given, *part, "0/2").output
    assert "4 samples in" in output and "these are part 0/2 of 8" in output
    output = shell("finish", store, code=1).output
    assert "2 of 4 shards are not scored yet" in output and "with rap merge" in output
    assert "same" not in output  # that command would score nothing more
    output = shell("select", *given, *part, "1/2", "--out", tmp_path / "o", code=2).output
    assert "rap select needs all scores" in output
    output = shell("score", *given, *part, "1/2").output
    assert "8 samples in" in output and "next: rap choose" in output
    assert "8 samples in" in shell("finish", store).output
