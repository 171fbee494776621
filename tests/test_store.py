"""The store loses nothing, mixes nothing, and says what it found."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rap
import rap.scores.files
from rap.errors import RapConfigError, RapStoreError
from rap.scores.files import read_parquet, write_atomic, write_parquet
from rap.scores.fingerprint import differences
from rap.scores.scores import Scores
from rap.scores.store import ScoreStore
from rap.scores.table import (
    ROLLOUT_SCHEMA,
    SCHEMA_VERSION,
    SCORE_SCHEMA,
    table_from_rows,
)
from rap.selection.choosing import choose

FINGERPRINT = {
    "model": {"id": "m", "weights": "abc"},
    "config": {"sampling": {"temperature": 1.0}, "seed": 0, "m1": 5},
    "dataset": "0123",
}
N, SIZE = 23, 5


def shard(rows: Iterable[int]) -> tuple[pa.Table, pa.Table]:
    """Scores and rollouts that depend on the index alone, as a seeded run's do."""
    scores, rollouts = [], []
    for i in rows:
        c1, c0 = i % 6, (i * 7) % 4
        counts = {"c1": c1, "m1": 5, "c0": c0, "m0": 5, "log_psi": -2.0 - i % 3}
        scores.append(
            {"id": f"s{i}", "index": i, "status": "scored", "evidence": "rollouts"} | counts
        )
        for number in range(5):
            made = {"text": f"{i}:{number} " * (i % 4), "token_ids": [i, number]}
            rollouts.append(
                {
                    "id": f"s{i}",
                    "index": i,
                    "arm": "image",
                    "number": number,
                    "correct": number < c1,
                }
                | made
            )
    return table_from_rows(scores), table_from_rows(rollouts, ROLLOUT_SCHEMA)


def opened(path: Path, fingerprint: dict | None = None) -> ScoreStore:
    return ScoreStore.open(path, fingerprint or FINGERPRINT, N, SIZE)


def fill(path: Path) -> None:
    with opened(path) as store:
        for k in store.missing():
            store.write(k, *shard(store.shard_range(k)))


def files(path: Path) -> dict[str, bytes]:
    """Everything that matters: the lock file may hold a dead process's name."""
    return {p.name: p.read_bytes() for p in path.iterdir() if p.name != "lock"}


@pytest.fixture
def full(tmp_path: Path) -> Path:
    fill(tmp_path / "store")
    return tmp_path / "store"


# ---------------------------------------------------------------- reading and writing


def test_what_is_written_is_read(full: Path) -> None:
    scores, rollouts = shard(range(N))
    with opened(full) as store:
        assert store.missing() == []
        assert store.read().equals(scores)
        assert store.read_shard(4).equals(scores.slice(20))
    read_only = ScoreStore.load(full)
    assert read_only.read().equals(scores)
    assert read_only.read_rollouts() is not None
    assert read_only.read_rollouts().equals(rollouts)
    assert read_only.meta["fingerprint"] == FINGERPRINT
    assert sorted(files(full))[0] == "rollouts-00000.parquet"
    assert len(files(full)) == 11
    loaded = Scores.load(full)
    assert loaded.table.equals(scores)
    assert loaded.rollouts.equals(rollouts)
    assert loaded.meta["n_samples"] == N
    with opened(full) as store:
        assert Scores.load(store).table.equals(scores)


def test_equal_tables_give_equal_bytes(full: Path, tmp_path: Path) -> None:
    path = tmp_path / "again"
    with opened(path) as store:
        for k in reversed(store.missing()):
            scores, rollouts = shard(store.shard_range(k))
            rollouts = pa.concat_tables([rollouts.slice(0, 3), rollouts.slice(3)])
            store.write(k, scores, rollouts)
    assert files(path) == files(full)


def test_shards_without_rollouts(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for k in store.missing():
            store.write(k, shard(store.shard_range(k))[0])
        assert store.read_rollouts() is None
        assert store.missing() == []
    with opened(tmp_path) as store:
        assert store.missing() == []


@pytest.mark.parametrize("with_rollouts", [True, False])
def test_a_shard_in_progress_is_kept_and_goes_when_it_is_whole(
    tmp_path: Path, full: Path, with_rollouts: bool
) -> None:
    def rows(n: int) -> tuple[pa.Table, pa.Table | None]:
        scores, rollouts = shard(range(5, 5 + n))
        return scores, rollouts if with_rollouts else None

    path = tmp_path / "new"
    with opened(path) as store:
        assert store.partial(1) is None and store.n_kept() == 0
        for n in (1, 3):
            store.write_partial(1, *rows(n), tally={"groups": n})
        assert store.missing() == [0, 1, 2, 3, 4] and store.parts() == [1]
    for store in (ScoreStore.load(path), opened(path)):
        kept = store.partial(1)
        assert kept is not None
        assert kept.scores.equals(rows(3)[0])
        assert kept.rollouts == rows(3)[1]
        assert kept.tally == {"groups": 3}
        assert (store.parts(), store.n_kept(), store.finished()) == ([1], 3, [])
        store.close()
    with opened(path) as store:
        part = (path / "partial-00001.parquet").read_bytes()
        store.write(1, *rows(5), tally={"groups": 5})
        assert (store.parts(), store.n_kept(), store.tally(1)) == ([], 5, {"groups": 5})
        assert not list(path.glob("partial*"))
    # killed between the two last steps of `write`
    (path / "partial-00001.parquet").write_bytes(part)
    with opened(path) as store:
        assert (store.parts(), store.n_kept()) == ([], 5)
    assert not list(path.glob("partial*"))


def test_rows_of_a_shard_in_progress_are_its_own_in_order(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for wrong in (range(4, 8), range(5, 5), range(5, 11), [7, 6], [6, 6]):
            with pytest.raises(ValueError, match="not rows of a shard"):
                store.write_partial(1, shard(wrong)[0])
        scores, rollouts = shard(range(5, 8))
        for wrong in (shard(range(5, 9))[1], shard(range(4, 8))[1], rollouts[::-1]):
            with pytest.raises(ValueError, match="rollouts that are not of its rows"):
                store.write_partial(1, scores, wrong)
        store.write_partial(1, *shard([6, 9]))  # the longest came first
        assert store.partial(1).scores["index"].to_pylist() == [6, 9]
        assert set(store.partial(1).rollouts["index"].to_pylist()) == {6, 9}
        assert store.n_kept() == 2
    with opened(tmp_path) as store:
        assert store.partial(1).scores["index"].to_pylist() == [6, 9]
        store.write(1, *shard(range(5, 10)))
        with pytest.raises(ValueError, match="not rows of a shard"):
            store.write_partial(1, scores, rollouts)
    with pytest.raises(RapStoreError, match="not open for writing"):
        ScoreStore.load(tmp_path).write_partial(0, *shard(range(2)))


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign", "other shard"])
def test_fault_34_a_damaged_shard_in_progress_is_set_aside(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "store"
    with opened(path) as store:
        store.write_partial(1, *shard(range(5, 8)))
    file = path / "partial-00001.parquet"
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 4
    elif damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "empty":
        data.clear()
    elif damage == "foreign":
        with opened(tmp_path / "b", FINGERPRINT | {"dataset": "else"}) as other:
            other.write_partial(1, *shard(range(5, 8)))
        data = bytearray((tmp_path / "b" / file.name).read_bytes())
    file.write_bytes(data)
    if damage == "other shard":
        file = file.rename(path / "partial-00002.parquet")
    with (
        pytest.warns(UserWarning, match="set aside as partial-0000"),
        opened(path) as store,
    ):
        assert store.parts() == [] and store.n_kept() == 0
        store.write_partial(1, *shard(range(5, 7)))
    assert file.with_name(file.name + ".corrupt").exists()
    with opened(path) as store:
        assert store.n_kept() == 2


def test_fault_34_the_header_is_found_again_in_a_shard_in_progress(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.write_partial(0, *shard(range(2)))
    (tmp_path / "store.json").unlink()
    with pytest.raises(RapConfigError, match="dataset"):
        opened(tmp_path, FINGERPRINT | {"dataset": "else"})
    with opened(tmp_path) as store:
        assert store.n_kept() == 2


def test_a_shard_to_be_scored_again_is_missing_and_its_file_stays(full: Path) -> None:
    before = (full / "scores-00002.parquet").read_bytes()
    with opened(full) as store:
        store.redo(2)
        assert store.missing() == [2]
    with opened(full) as store:  # after a restart too
        assert store.missing() == [2]
        assert (full / "scores-00002.parquet.old").read_bytes() == before
        store.write_partial(2, *shard(range(10, 12)))
        store.write(2, *shard(range(10, 15)))
    assert ScoreStore.load(full).read().equals(shard(range(N))[0])
    assert not list(full.glob("*.old")) and not list(full.glob("partial*"))
    with opened(full) as store:
        store.redo(2)
        store.write_partial(2, *shard(range(10, 12)))
        store.redo(2)
        assert store.parts() == [] and store.n_kept() == N - SIZE


def test_an_unfinished_store_says_so(full: Path) -> None:
    (full / "scores-00002.parquet").unlink()
    store = ScoreStore.load(full)
    assert store.missing() == [2]
    with pytest.raises(RapStoreError, match="1 of 5 shards are not scored yet .first: 2."):
        store.read()
    assert store.read_rollouts().num_rows == (N - SIZE) * 5
    with pytest.raises(RapStoreError, match="not open for writing"):
        store.write(2, *shard(store.shard_range(2)))


def test_shards_hold_their_own_rows_only(full: Path) -> None:
    with opened(full) as store:
        scores, rollouts = shard(store.shard_range(1))
        with pytest.raises(ValueError, match=r"range\(0, 5\), in order"):
            store.write(0, scores, rollouts)
        with pytest.raises(ValueError, match="in order"):
            store.write(1, scores.slice(1), rollouts)
        with pytest.raises(ValueError, match="rollouts of"):
            store.write(0, shard(range(5))[0], rollouts)
        with pytest.raises(IndexError):
            store.write(5, scores)
        store.write(1, scores, rollouts)  # again, as a retry does
        assert store.shard_range(4) == range(20, 23)
    for n, size in ((0, 5), (5, 0)):
        with pytest.raises(RapConfigError):
            ScoreStore.open(full, FINGERPRINT, n, size)


def test_a_shard_is_durable_before_it_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power loss cannot be tried here; the order of the calls that survive it can."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def name_of(path: str | Path) -> str:
        """Without host, machine and random part of a temporary name."""
        return re.sub(r"\.[\w-]+-(\d+)-[0-9a-f]{8}\.tmp$", r".\1.tmp", Path(path).name)

    def watched_fsync(handle: int) -> None:
        calls.append(f"fsync {name_of(os.readlink(f'/proc/self/fd/{handle}'))}")
        fsync(handle)

    def watched_replace(a: Path, b: Path) -> None:
        calls.append(f"rename {name_of(a)} {name_of(b)}")
        replace(a, b)

    with opened(tmp_path / "s") as store:
        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(os, "replace", watched_replace)
        store.write(0, *shard(range(5)))
    wanted = []
    for name in ("rollouts-00000.parquet", "scores-00000.parquet"):
        tmp = f".{name}.{os.getpid()}.tmp"
        wanted += [f"fsync {tmp}", f"rename {tmp} {name}", "fsync s"]
    assert calls == wanted


# ---------------------------------------------------------------- kill -9

# From Python 3.12 on, fork() in a process that has threads (Arrow's) warns.
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

KILLED = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import test_store
from pathlib import Path
with test_store.opened(Path({path!r})) as store:
    print("open", flush=True)
    for k in store.missing():
        store.write(k, *test_store.shard(store.shard_range(k)))
print("done", flush=True)
"""


def _score_slowly(path: str, delay: float, ready) -> None:  # type: ignore[no-untyped-def]
    """Runs in a forked child until it is killed: a pause in every place a kill can hit."""
    fsync, replace = os.fsync, os.replace

    def slow_fsync(handle: int) -> None:
        time.sleep(delay)
        fsync(handle)

    def slow_replace(a: str, b: str) -> None:
        time.sleep(delay)
        replace(a, b)
        time.sleep(delay)

    os.fsync, os.replace = slow_fsync, slow_replace  # type: ignore[assignment]
    ready.set()
    fill(Path(path))
    os._exit(0)


@forks
def test_fault_31_kill_9_twenty_times(full: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed"
    rng = random.Random(31)
    context = multiprocessing.get_context("fork")
    kills, acknowledged = 0, set()
    for _ in range(200):
        if kills == 20:
            break
        ready = context.Event()
        child = context.Process(target=_score_slowly, args=(str(path), 0.002, ready))
        child.start()
        ready.wait(900)
        time.sleep(rng.uniform(0, 0.06))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        done = {p.name for p in path.glob("scores-*.parquet")} if path.exists() else set()
        assert acknowledged <= done  # nothing finished is lost
        acknowledged = done
        if len(done) == 5:  # start over, so that all 20 kills hit a run at work
            fill(path)
            assert files(path) == files(full)
            shutil.rmtree(path)
            acknowledged = set()
    assert kills == 20
    fill(path)
    assert files(path) == files(full)
    choose(Scores.load(path), budget=0.3).save(tmp_path / "a")
    choose(Scores.load(full), budget=0.3).save(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_fault_35_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parent.parent)
    script = KILLED.format(root=root, tests=f"{root}/tests", path=str(tmp_path / "s"))
    script = script.replace("    for k", "    time.sleep(60)\n    for k")
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(RapStoreError, match=f'another process .*"pid": {child.pid}'):
            opened(tmp_path / "s")
        child.kill()
    fill(tmp_path / "s")


def test_fault_35_one_writer_in_a_process(tmp_path: Path) -> None:
    with opened(tmp_path / "s"):
        with pytest.raises(RapStoreError, match="this process has the store open"):
            opened(tmp_path / "s")
        (tmp_path / "link").symlink_to(tmp_path / "s")
        with pytest.raises(RapStoreError, match="this process has the store open"):
            opened(tmp_path / "link")
    store = opened(tmp_path / "s")
    store.close()
    store.close()
    opened(tmp_path / "s").close()


@forks
def test_fault_35_a_forked_worker_neither_holds_nor_frees_the_lock(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        pid = os.fork()
        if pid == 0:
            store.close()
            try:
                store.write(0, *shard(range(5)))
            except RapStoreError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        script = KILLED.format(
            root=str(Path(__file__).resolve().parent.parent),
            tests=str(Path(__file__).resolve().parent),
            path=str(tmp_path / "s"),
        )
        other = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True
        )
        assert (
            f'another process is scoring into this store ({{"pid": {os.getpid()},'
            in other.stderr
        )
        store.write(0, *shard(range(5)))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_fault_38_no_locks_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(RapStoreError, match="has no locks"):
        opened(tmp_path / "s")
    monkeypatch.undo()
    opened(tmp_path / "s").close()


# ---------------------------------------------------------------- disk faults


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_fault_33_no_space_at_every_write(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    """Fail the 1st call, then the 2nd, ... until a whole run goes through (as SQLite)."""
    path = tmp_path / "disk"
    real_open, real_fsync, real_replace = open, os.fsync, os.replace
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(code, os.strerror(code))

    def counting_open(name, mode="r", *args, **kwargs):  # type: ignore[no-untyped-def]
        file = real_open(name, mode, *args, **kwargs)
        if call != "write" or "w" not in mode:
            return file

        class Failing:
            def __enter__(self):  # type: ignore[no-untyped-def]
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
                return getattr(file, name)

            def write(self, data: bytes) -> int:
                file.write(data[: len(data) // 2])  # a part reached the disk
                count()
                return file.write(data[len(data) // 2 :])

        return Failing()

    def counting_fsync(handle: int) -> None:
        if call == "fsync":
            count()
        real_fsync(handle)

    def counting_replace(a: str, b: str) -> None:
        if call == "replace":
            count()
        real_replace(a, b)

    monkeypatch.setattr(rap.scores.files, "open", counting_open, raising=False)
    monkeypatch.setattr(os, "fsync", counting_fsync)
    monkeypatch.setattr(os, "replace", counting_replace)
    finished: dict[str, bytes] = {}
    for failing in range(1, 60):
        calls = 0
        try:
            fill(path)
        except RapStoreError as error:
            assert error.errno == code
        else:
            break
        there = files(path)
        assert not [name for name in there if name.endswith(".tmp")]
        assert finished.items() <= there.items()
        finished = {n: b for n, b in there.items() if n.startswith("scores-")}
        if failing % 4 == 0:
            shutil.rmtree(path)
            finished = {}
    else:
        pytest.fail("never went through")
    assert failing > 5
    assert files(path) == files(full)


def test_fault_33_leftover_tmp_files_go_at_the_next_start(full: Path) -> None:
    (full / ".scores-00000.parquet.12345.tmp").write_bytes(b"half")
    before = files(full)
    opened(full).close()
    assert set(before) - set(files(full)) == {".scores-00000.parquet.12345.tmp"}


def test_fault_32_an_interrupt_leaves_no_tmp(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")

    def interrupted(file) -> None:  # type: ignore[no-untyped-def]
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", interrupted)
    assert files(tmp_path) == {"x": b"old"}


def test_fault_38_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "s", Path("/proc/rap-store")):
        with pytest.raises(RapStoreError, match="cannot be made"):
            opened(path)


@forks
def test_fault_38_a_read_only_folder_is_refused_at_open(full: Path) -> None:
    """As another user: root may write everywhere."""
    for folder in [full, *full.parents]:
        if folder.owner() == full.owner() and folder != Path("/"):
            folder.chmod(0o755 if folder != full else 0o555)
        if folder.name.startswith("pytest-of-"):
            break
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            os.remove(full / "lock")
            status = 4  # it could be written after all
        except PermissionError:
            try:
                opened(full)
                status = 1
            except RapStoreError as error:
                status = 0 if error.errno == errno.EACCES else 2
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    full.chmod(0o755)
    assert code == 0


def test_fault_38_a_file_system_that_cannot_sync_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.warns(UserWarning, match="cannot sync a folder"):
        store = opened(tmp_path / "s")
    store.write(0, *shard(range(5)))
    store.close()


# ---------------------------------------------------------------- damage


def flip(path: Path, at: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)


DAMAGE = {
    "half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "empty": lambda p: p.write_bytes(b""),
    "one bit": lambda p: flip(p, p.stat().st_size // 3),
    "text": lambda p: p.write_text("<html>quota exceeded</html>"),
    "parquet of others": lambda p: pq.write_table(pa.table({"a": [1]}), p),
    "another shard": lambda p: shutil.copy(p.with_name(p.name.replace("2", "1")), p),
}


@pytest.mark.parametrize("kind", ["scores", "rollouts"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_fault_34_damaged_shards_are_set_aside(full: Path, kind: str, damage: str) -> None:
    before = files(full)
    victim = full / f"{kind}-00002.parquet"
    DAMAGE[damage](victim)
    damaged = victim.read_bytes()
    with pytest.raises(RapStoreError):
        Scores.load(full, verify=True)
    with pytest.raises(RapStoreError):
        _ = Scores.load(full).rollouts  # read when they are asked for
    with pytest.warns(UserWarning, match=f"{kind}-00002.parquet.*corrupt"):
        store = opened(full)
    with store:
        assert store.missing() == [2]
        assert len(store.warnings) == 1
        store.write(2, *shard(store.shard_range(2)))
    after = files(full)
    assert after.pop(victim.name + ".corrupt") == damaged
    assert after == before


def test_fault_34_every_byte_is_guarded(full: Path) -> None:
    """Also the footer, which Parquet's page checksums do not cover."""
    path = full / "scores-00001.parquet"
    good = path.read_bytes()
    for at in range(0, len(good), 7):
        flip(path, at, 1 << at % 8)
        with pytest.raises(RapStoreError):
            read_parquet(path)
        path.write_bytes(good)
    for cut in range(0, len(good), 61):
        path.write_bytes(good[:cut])
        with pytest.raises(RapStoreError):
            read_parquet(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(RapStoreError):
        read_parquet(path)


def test_page_checksums_are_on(full: Path) -> None:
    """Another Parquet reader finds a flipped bit in a page without our digest."""
    path = full / "rollouts-00003.parquet"
    chunk = pq.read_metadata(path).row_group(0).column(4)  # text
    # zstd would notice by itself in most places: the check must work everywhere
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = path.read_bytes()
    found = 0
    for at in range(start + 40, start + chunk.total_compressed_size, 5):
        broken = bytearray(data)
        broken[at] ^= 1
        try:
            pq.read_table(pa.BufferReader(bytes(broken)), page_checksum_verification=True)
        except OSError as error:
            found += "CRC checksum" in str(error)
    assert found > 0


def test_fault_34_a_second_damage_of_one_shard(full: Path) -> None:
    for wanted in ("scores-00002.parquet.corrupt", "scores-00002.parquet.2.corrupt"):
        DAMAGE["empty"](full / "scores-00002.parquet")
        with pytest.warns(UserWarning, match="corrupt"):
            fill(full)
        assert wanted in files(full)


def test_fault_34_rollouts_lost_are_made_again(full: Path) -> None:
    before = files(full)
    (full / "rollouts-00004.parquet").unlink()
    with pytest.warns(UserWarning, match="rollouts-00004.parquet is missing"):
        fill(full)
    assert files(full) == before


@pytest.mark.parametrize("k", [5, 9])
def test_fault_34_a_shard_beyond_the_end(full: Path, k: int) -> None:
    assert files(full).keys() >= {"scores-00004.parquet"}  # the last of its five
    shutil.copy(full / "scores-00001.parquet", full / f"scores-{k:05}.parquet")
    with pytest.warns(UserWarning, match="no shard of this store"):
        opened(full).close()
    assert f"scores-{k:05}.parquet.corrupt" in files(full)


@pytest.mark.parametrize("damage", ["half", "empty", "lost", "not a store", "nested"])
def test_fault_34_the_header_is_found_again_in_the_shards(full: Path, damage: str) -> None:
    before = files(full)
    header = full / "store.json"
    text = {"half": header.read_text()[:40], "empty": "", "nested": "[" * 100_000}
    if damage == "lost":
        header.unlink()
    else:
        header.write_text(text.get(damage, '{"schema_version": 1, "n_samples": "x"}'))
    other = FINGERPRINT | {"dataset": "9"}
    aside = pytest.warns(UserWarning, match="store.json.corrupt")
    with pytest.raises(RapConfigError, match='dataset: "9" here, "0123" in the store'):
        if damage == "lost":
            opened(full, other)
        else:
            with aside:
                opened(full, other)
    fill(full)
    after = files(full)
    after.pop("store.json.corrupt", None)
    assert after == before


# ---------------------------------------------------------------- no mixing


@pytest.mark.parametrize(
    ("change", "n", "size", "message"),
    [
        ({"model": {"id": "m2", "weights": "abc"}}, N, SIZE, 'model.id: "m2" here, "m" in'),
        (
            {"config": {"sampling": {"temperature": 0.7}, "seed": 1, "m1": 5}},
            N,
            SIZE,
            "config.sampling.temperature: 0.7 here, 1.0 in the store; config.seed: 1 here",
        ),
        ({"config": 3}, N, SIZE, "config: 3 here"),
        ({"prompt": "x"}, N, SIZE, 'prompt: "x" here, absent in the store'),
        ({}, N + 1, SIZE, "n_samples: 24 here, 23 in the store"),
        ({}, N, SIZE + 1, "shard_size: 6 here, 5 in the store"),
    ],
)
def test_fault_36_another_run_is_refused_naming_the_field(
    full: Path, change: dict, n: int, size: int, message: str
) -> None:
    before = files(full)
    with pytest.raises(RapConfigError, match=message):
        ScoreStore.open(full, FINGERPRINT | change, n, size)
    assert files(full) == before
    opened(full).close()  # the refusal let the lock go


def test_fault_36_a_shard_of_another_run_is_set_aside(full: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with ScoreStore.open(other, FINGERPRINT | {"dataset": "9"}, N, SIZE) as store:
        store.write(1, *shard(store.shard_range(1)))
    shutil.copy(other / "scores-00001.parquet", full)
    with pytest.warns(UserWarning, match="is of another run"):
        store = opened(full)
    with store:
        assert store.missing() == [1]


def test_differences() -> None:
    assert differences({"a": (1,)}, {"a": (1,)}) == []
    assert differences({"a": 1}, {"a": 1.0}) == []
    assert differences({"a": True}, {"a": 1}) == ["a: true here, 1 in the store"]
    assert differences({"a": {"b": None}}, {}) == [
        'a: {"b": null} here, absent in the store'
    ]
    assert len(differences({"a": "x" * 9999}, {"a": "y"})[0]) < 300
    with pytest.raises(RapConfigError, match="fingerprint"):
        ScoreStore.open("unused", {"a": float("nan")}, 1, 1)
    with pytest.raises(RapConfigError, match="fingerprint"):
        ScoreStore.open("unused", {"a": object()}, 1, 1)
    assert not Path("unused").exists()


def test_fault_36_tuples_and_lists_are_one(tmp_path: Path) -> None:
    for value in ((1, 2), [1, 2]):
        ScoreStore.open(tmp_path, {"a": value}, 3, 2).close()


def test_fault_37_a_store_of_a_newer_schema(full: Path) -> None:
    header = json.loads((full / "store.json").read_text())
    before = files(full)
    newer = SCHEMA_VERSION + 1
    for version, message in (
        (newer, "upgrade it: pip install -U rap-select .in a clone"),
        (0, "schema 0"),
    ):
        (full / "store.json").write_text(json.dumps(header | {"schema_version": version}))
        for call in (lambda: opened(full), lambda: ScoreStore.load(full)):
            with pytest.raises(RapStoreError, match=message):
                call()
    assert files(full).keys() == before.keys()  # nothing was set aside

    # a shard, and a selection, of a newer version are not damage either
    (full / "store.json").write_bytes(before["store.json"])
    table, _ = shard(range(5))
    note = {"schema_version": newer, "kind": "score shard", "shard": 0, "rollouts": None}
    write_parquet(full / "scores-00000.parquet", table, note | {"fingerprint": FINGERPRINT})
    for call in (lambda: opened(full), lambda: Scores.load(full)):
        with pytest.raises(RapStoreError, match=f"reads up to {SCHEMA_VERSION}"):
            call()
    assert files(full).keys() == before.keys()


@pytest.mark.parametrize("version", [0, -1, "1", None, 1.5])
def test_fault_37_a_store_of_no_schema(full: Path, version: object) -> None:
    header = json.loads((full / "store.json").read_text())
    (full / "store.json").write_text(json.dumps(header | {"schema_version": version}))
    with pytest.raises(RapStoreError, match="is not one this version knows"):
        ScoreStore.load(full)


@pytest.mark.parametrize(
    "wrong", [{"n_samples": 0}, {"shard_size": 0}, {"n_samples": "23"}, {"fingerprint": 7}]
)
def test_a_header_that_makes_no_sense_is_damage(full: Path, wrong: dict) -> None:
    header = json.loads((full / "store.json").read_text())
    (full / "store.json").write_text(json.dumps(header | wrong))
    with pytest.raises(RapStoreError, match="is damaged"):
        ScoreStore.load(full)


def test_rollouts_of_a_shard_in_progress_are_in_the_order_of_its_rows(tmp_path) -> None:
    scores, rollouts = shard(range(3))
    turned = rollouts.take(list(reversed(range(rollouts.num_rows))))
    with opened(tmp_path / "store") as store:
        for bad in (turned, pa.concat_tables([rollouts, rollouts.slice(0, 1)])):
            with pytest.raises(ValueError, match="rollouts that are not of its rows"):
                store.write_partial(0, scores, bad)
        store.write_partial(0, scores, rollouts)
        assert store.partial(0).rollouts.equals(rollouts)


def test_fault_35_two_processes_cannot_hold_the_lock(tmp_path: Path) -> None:
    """The second is refused by name while the first lives, and not after it."""
    store = tmp_path / "store"
    fill(store)
    code = """
import sys, time
from rap.scores.lock import Lock
from pathlib import Path
held = Lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RapStoreError, match="another process is scoring into this"):
            opened(store)
        other.stdin.close()
        other.wait(60)
    with opened(store) as mine:
        assert mine.missing() == []


def test_load_of_no_store(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RapStoreError, match="no score store here"):
            ScoreStore.load(path)


def test_fault_42_no_file_stays_open(full: Path) -> None:
    def handles() -> int:
        return len(os.listdir("/proc/self/fd"))

    opened(full).close()
    before = handles()
    for _ in range(20):
        opened(full).close()
        Scores.load(full)
        with pytest.raises(RapConfigError):
            opened(full, {"a": 1})
    assert handles() == before


def test_fault_16_any_text_can_be_stored(tmp_path: Path) -> None:
    odd = "nul \0, \u202e right to left, \U0001f600, line\nend" + "x" * 100_000
    with ScoreStore.open(tmp_path, {}, 1, 1) as store:
        row = {"id": odd, "index": 0, "status": "quarantined", "code": "bad_text"}
        store.write(0, table_from_rows([row | {"message": odd}]))
        assert store.read()["message"].to_pylist() == [odd]
        assert store.read().schema == SCORE_SCHEMA


def test_no_thread_of_arrow_holds_bytes_of_python(tmp_path: Path) -> None:
    """One that lets go of them last, while Python ends, aborts the process: seen once in
    some ten runs of ``rap choose`` on a busy machine. So none is started where a shard is
    verified, which is where its bytes are Python's."""
    fill(tmp_path / "store")
    script = (
        "import os, sys\n"
        "import pyarrow as pa\n"
        "from rap.scores.scores import Scores\n"
        "pa.set_cpu_count(4)\n"
        "before = set(os.listdir('/proc/self/task'))\n"
        "scores = Scores.load(sys.argv[1], verify=True)\n"
        "assert scores.rollouts.num_rows\n"
        "more = set(os.listdir('/proc/self/task')) - before\n"
        "print([open(f'/proc/self/task/{t}/comm').read() for t in more])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(rap.__file__).parent.parent)},
    )
    assert done.stdout == "[]\n"


def test_a_table_without_a_chunk_has_structs_of_its_type() -> None:
    """pyarrow 17 raises there: a partial shard without completions was lost."""
    from rap.samples.tables import as_structs

    table = pa.table({"a": pa.array([], pa.int32()), "b": pa.array([], pa.string())})
    for empty in (table, pa.Table.from_batches([], table.schema)):
        assert as_structs(empty).type == pa.struct(list(table.schema))
    two = pa.table({"a": [1, 2], "b": ["x", None]})
    assert as_structs(two).to_pylist() == two.to_pylist()
