"""Many processes fill one store: claims, the plan, temporary names. No model: a shard is
written from its numbers alone, as in tests/test_store.py."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_store import FINGERPRINT, SIZE, N, files, fill, opened, shard

from rap.config import ScoreConfig
from rap.errors import RapInputError, RapModelError, RapStoreError
from rap.scores.claims import SEAL, Claim, Claims, require_idle
from rap.scores.joined import JoinedStore
from rap.scores.judge import judge_whole
from rap.scores.owner import Owner, lives, me, stale_tmps, tmp_name
from rap.scores.sealing import finish, seal
from rap.scores.shardplan import (
    NAME,
    ShardPlan,
    has_plan,
    make_plan,
    read_plan,
    shard_size_for,
)
from rap.scores.shards import Shards
from rap.scores.store import ScoreStore

# From Python 3.12 on, fork() in a process that has threads (Arrow's) warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
FORK = multiprocessing.get_context("fork")
CONFIG = ScoreConfig()
PATIENCE = 900.0
"""Seconds until a test that waits for another process gives up."""

ELSEWHERE = Owner("far", "ffffffff", 7, 12345)
"""A process of another machine."""


def planned(path: Path) -> ShardPlan:
    """A store without shards, and its plan."""
    with ScoreStore.open(path, FINGERPRINT, N, SIZE, shared=True) as store:
        header = {"n_samples": N, "shard_size": SIZE, "fingerprint": store.fingerprint}
        plan = make_plan(header, None, ("",) * store.n_shards)
        plan.write(path)
    return plan


def shards_of(path: Path) -> dict[str, bytes]:
    """The files that a store of one process has, too."""
    return {n: b for n, b in files_in(path).items() if n != NAME}


def files_in(path: Path) -> dict[str, bytes]:
    names = (p for p in path.iterdir() if p.is_file() and p.name != "lock")
    return {p.name: p.read_bytes() for p in names}


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def foreign(folder: Path, name: str, *, lease: float = 100.0, beat: int = 0) -> None:
    """A claim of a process that cannot be seen from here."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(Claim(ELSEWHERE, "them", 3, lease, beat).text())


class Clock:
    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------- claims


def test_a_claim_is_one_process_s(tmp_path: Path) -> None:
    with Claims(tmp_path, rank=2) as ours, Claims(tmp_path) as theirs:
        assert ours.take("4") and ours.holds("4")
        assert not theirs.take("4") and not theirs.take_over("4")
        assert not theirs.holds("4")
        claim = theirs.others()["4"]
        assert claim is not None and claim.owner == me() and claim.rank == 2
        assert str(claim) == f"rank 2, process {os.getpid()} on {me().host}"
        theirs.release("4")  # not theirs: nothing happens
        assert ours.holds("4")
        ours.release("4")
        assert theirs.take("4") and not ours.holds("4")
    assert os.listdir(tmp_path / "claims") == []


def test_a_claim_is_of_one_length_and_read_back() -> None:
    claim = Claim(me(), "token", None, 120.0)
    later = dataclasses.replace(claim, beat=10**15)
    assert len(claim.text()) == len(later.text())
    assert Claim.of(later.text()) == later
    for text in (b"", b"{", b"null", b'{"owner": {}}', claim.text()[:40]):
        assert Claim.of(text) is None


def _claim_and_wait(path: str, name: str) -> None:
    Claims(Path(path), rank=5).take(name)
    time.sleep(3600)


def killed_holder(path: Path, name: str) -> Owner:
    """A process that has claimed and was killed; it is not waited for before the return,
    so it is a zombie at first."""
    child = FORK.Process(target=_claim_and_wait, args=(str(path), name))
    child.start()
    there = path / "claims" / name
    until(lambda: there.exists() and Claim.of(there.read_bytes()))
    claim = Claim.of(there.read_bytes())
    assert claim is not None and lives(claim.owner) is True
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert lives(claim.owner) is False  # dead, though its parent has not looked
    child.join()
    return claim.owner


def test_a_claim_of_a_dead_process_is_taken_at_once(tmp_path: Path) -> None:
    owner = killed_holder(tmp_path, "0")
    assert lives(owner) is False
    with Claims(tmp_path, lease=1e9) as ours:
        assert not ours.take("0")
        assert ours.take_over("0")
        assert ours.holds("0")


def test_a_process_number_used_again_is_another_process(tmp_path: Path) -> None:
    reborn = dataclasses.replace(me(), started=me().started - 1)
    assert lives(me()) is True and lives(reborn) is False


def test_a_process_of_another_user_may_be_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc mounted with hidepid: it is there, and that is all that is known."""
    hidden = dataclasses.replace(me(), pid=os.getppid())

    def refuse(pid: int, number: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def unseen(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(Path, "read_text", unseen)
    assert lives(hidden) is None


@pytest.mark.parametrize("hours", [-5, 0, 5])
def test_fault_39_clocks_that_differ_by_hours(tmp_path: Path, hours: int) -> None:
    """Only changes count, seen by the reader's own clock: no time stamp is looked at."""
    foreign(tmp_path / "claims", "0", lease=100)
    stamp = time.time() + 3600 * hours
    os.utime(tmp_path / "claims" / "0", (stamp, stamp))
    clock = Clock()
    with Claims(tmp_path, lease=1, clock=clock) as ours:
        assert not ours.take_over("0")
        clock.now += 99  # its own lease holds, not the reader's
        assert not ours.take_over("0")
        foreign(tmp_path / "claims", "0", lease=100, beat=1)  # a sign of life
        os.utime(tmp_path / "claims" / "0", (stamp, stamp))
        clock.now += 99
        assert not ours.take_over("0")
        clock.now += 98
        assert not ours.take_over("0")
        clock.now += 3
        assert ours.take_over("0")
        assert ours.holds("0")


def test_a_claim_whose_owner_died_before_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "0").write_bytes(b"")
    clock = Clock()
    with Claims(tmp_path, lease=50, clock=clock) as ours:
        assert not ours.take_over("0")
        clock.now += 51
        assert ours.take_over("0")


def test_a_stale_claim_goes_to_one_of_many(tmp_path: Path) -> None:
    takers = [Claims(tmp_path, lease=1e9) for _ in range(6)]
    with ThreadPoolExecutor(len(takers)) as pool:
        for turn in range(40):
            name = str(turn)
            dead = dataclasses.replace(me(), started=1)
            path = tmp_path / "claims" / name
            path.write_bytes(Claim(dead, "gone", None, 1e9).text())
            start = threading.Barrier(len(takers))

            def take(claims: Claims, name: str = name, start=start) -> bool:
                start.wait(PATIENCE)
                return claims.take_over(name)

            taken = list(pool.map(take, takers))
            holding = [claims.holds(name) for claims in takers]
            assert sum(holding) == 1
            # One whose claim a late reader renamed in between finds out by `holds`.
            assert all(t for t, h in zip(taken, holding, strict=True) if h)
    for claims in takers:
        claims.close()
    assert os.listdir(tmp_path / "claims") == []


def test_a_claim_taken_over_in_between_is_put_back(tmp_path: Path) -> None:
    """A reader judges a claim stale; before it acts another has taken it over."""
    path = tmp_path / "claims" / "0"
    with Claims(tmp_path, lease=1e9) as slow, Claims(tmp_path, lease=1e9) as quick:
        path.write_bytes(
            Claim(dataclasses.replace(me(), started=1), "gone", None, 1).text()
        )
        assert slow.is_stale("0")
        assert quick.take_over("0")
        slow.is_stale = lambda name: True  # type: ignore[method-assign]
        assert not slow.take_over("0")
        assert quick.holds("0") and not slow.holds("0")


def test_signs_of_life(tmp_path: Path) -> None:
    """A claim changes while its owner lives, and not any more when it is gone or lost."""
    path = tmp_path / "claims" / "0"
    with Claims(tmp_path, lease=0.02) as ours:
        assert ours.take("0")
        first = path.read_bytes()
        until(lambda: path.read_bytes() != first)
        foreign(tmp_path / "claims", "1")
        os.replace(tmp_path / "claims" / "1", path)  # taken over: another file
        theirs = path.read_bytes()
        assert not ours.holds("0")
        time.sleep(0.1)
        assert path.read_bytes() == theirs
        ours.release("0")
        assert path.read_bytes() == theirs  # not ours to remove


def test_a_forked_child_holds_nothing(tmp_path: Path) -> None:
    with Claims(tmp_path) as ours:
        assert ours.take("0")
        pid = os.fork()
        if pid == 0:
            held = ours.holds("0")
            ours.close()
            os._exit(held)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert ours.holds("0")


# ---------------------------------------------------------------- one store, many writers


def test_a_slow_worker_writes_nothing_of_what_was_taken_over(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    with Claims(tmp_path) as slow, Claims(tmp_path) as quick:
        a, b = JoinedStore(tmp_path, plan, slow), JoinedStore(tmp_path, plan, quick)
        assert a.claim(1)
        assert not b.claim(1, over=True)
        os.unlink(tmp_path / "claims" / "1")  # its lease was over
        assert b.claim(1, over=True)
        scores, rollouts = shard(b.shard_range(1))
        a.write_partial(1, scores.slice(0, 2), rollouts.slice(0, 10))
        a.write(1, scores, rollouts)
        assert b.missing() == [0, 1, 2, 3, 4] and not list(tmp_path.glob("*.parquet"))
        b.write(1, scores, rollouts)
        assert b.missing() == a.missing() == [0, 2, 3, 4]
        assert not a.claim(1, over=True)  # it is there
    assert os.listdir(tmp_path / "claims") == []


def test_a_shard_goes_on_where_another_worker_left_it(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    with Claims(tmp_path) as first:
        store = JoinedStore(tmp_path, plan, first)
        assert store.claim(0)
        scores, rollouts = shard(range(3))
        store.write_partial(0, scores, rollouts, tally={"groups": 3, "degenerate": 0})
    with Claims(tmp_path) as second:
        store = JoinedStore(tmp_path, plan, second)
        assert store.claim(0)
        part = store.partial(0)
        assert part is not None and part.scores.equals(scores)
        path = tmp_path / "partial-00000.parquet"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.warns(UserWarning, match="set aside"):
            assert store.partial(0) is None
        store.write(0, *shard(range(5)))
    assert [p.name for p in tmp_path.glob("partial*")] == ["partial-00000.parquet.corrupt"]


def _work(path: str, delay: float, lease: float, failing: int = 0) -> None:
    """A worker in a forked child, until it is killed: a pause wherever a kill can hit."""
    fsync, replace, calls = os.fsync, os.replace, 0

    def slow_fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        time.sleep(delay)
        fsync(handle)

    def slow_replace(a: str, b: str) -> None:
        time.sleep(delay)
        replace(a, b)

    os.fsync, os.replace = slow_fsync, slow_replace  # type: ignore[assignment]
    code = 0
    try:
        work(Path(path), lease)
    except RapStoreError as error:
        print("REFUSED", repr(error), flush=True)  # the child says why
        code = error.errno or 1
    os._exit(code)


def work(path: Path, lease: float) -> None:
    """Fill the store with others, and seal it."""
    plan = read_plan(path)
    assert plan is not None
    with Claims(path, lease=lease) as claims:
        store = JoinedStore(path, plan, claims)
        while True:
            for k in store.missing():
                if store.claim(k, over=True):
                    store.write(k, *shard(store.shard_range(k)))
            found = read_plan(path)
            assert found is not None
            if found.sealed is not None:
                return
            if not store.missing() and claims.take_over(SEAL):
                if seal(path, plan, CONFIG, True):
                    return
                claims.release(SEAL)
            time.sleep(0.002)


@pytest.mark.parametrize("seed", [1, 2])
def test_fault_31_workers_killed_twenty_times(tmp_path: Path, seed: int) -> None:
    fill(tmp_path / "whole")
    wanted = files(tmp_path / "whole")
    chance = random.Random(f"claims {seed}")
    kills = rounds = 0
    while kills < 10:
        path = tmp_path / f"store{rounds}"
        rounds += 1
        assert rounds < 100
        planned(path)
        acknowledged: set[str] = set()
        for _ in range(3):
            children = [
                FORK.Process(target=_work, args=(str(path), 0.002, 60)) for _ in range(3)
            ]
            for child in children:
                child.start()
            for child in chance.sample(children, chance.randint(1, 3)):
                time.sleep(chance.uniform(0, 0.03))
                child.kill()
            for child in children:
                child.join(PATIENCE)
                assert child.exitcode in (0, -signal.SIGKILL)
                kills += child.exitcode != 0
            done = {p.name for p in path.glob("scores-*.parquet")}
            assert acknowledged <= done  # nothing finished is lost
            acknowledged = done
        work(path, 60)
        plan = read_plan(path)
        assert plan is not None and plan.sealed is not None
        assert plan.drawn.image.rollouts == 5 * N
        fill(path)  # one process with the store for itself finds nothing to do
        assert files_in(path) == wanted  # and no plan, nor anything left over


def test_fault_33_a_full_disk_in_one_worker(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    for failing in range(1, 9):
        path = tmp_path / f"store{failing}"
        planned(path)
        full = FORK.Process(target=_work, args=(str(path), 0.004, 60, failing))
        other = FORK.Process(target=_work, args=(str(path), 0.004, 60))
        full.start()
        other.start()
        full.join(PATIENCE)
        other.join(PATIENCE)
        assert full.exitcode in (0, errno.ENOSPC)  # 0: the other was faster
        assert other.exitcode == 0
        assert shards_of(path) == files(tmp_path / "whole")
        assert os.listdir(path / "claims") == []


def test_a_damaged_shard_is_found_when_the_store_is_sealed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    plan = planned(path)
    with Claims(path) as claims:
        store = JoinedStore(path, plan, claims)
        for k in store.missing():
            assert store.claim(k)
            store.write(k, *shard(store.shard_range(k)))
        data = bytearray((path / "scores-00002.parquet").read_bytes())
        data[100] ^= 1
        (path / "scores-00002.parquet").write_bytes(data)
        with pytest.warns(UserWarning, match="scores-00002.* set aside"):
            assert not seal(path, plan, CONFIG, True)
        assert store.missing() == [2]
        assert store.claim(2)
        store.write(2, *shard(store.shard_range(2)))
        assert seal(path, plan, CONFIG, True)
    assert ScoreStore.load(path).missing() == []


def test_limits_are_judged_over_all_workers(tmp_path: Path) -> None:
    """Whatever a worker has of them: the sum decides."""

    def filled(path: Path, bad: int, degenerate: int) -> ShardPlan:
        plan = planned(path)
        with Claims(path) as claims:
            store = JoinedStore(path, plan, claims)
            for k in store.missing():
                scores, rollouts = shard(store.shard_range(k))
                rows = scores.to_pylist()
                for row in rows[:1] if k < bad else []:
                    row |= {"status": "quarantined", "stage": "image", "code": "x"}
                    row |= {"message": "is gone"}
                tally = {"groups": 4, "degenerate": 4 if k < degenerate else 0}
                assert store.claim(k)
                scores = type(scores).from_pylist(rows, schema=scores.schema)
                store.write(k, scores, rollouts, tally=tally)
        return plan

    config = ScoreConfig(max_bad_fraction=0.09)
    plan = filled(tmp_path / "some", bad=2, degenerate=2)
    assert seal(tmp_path / "some", plan, config, False)
    plan = filled(tmp_path / "bad", bad=3, degenerate=0)
    with pytest.raises(RapInputError, match=r"3 of 23 samples are bad.*image/x: 3; 23 se"):
        seal(tmp_path / "bad", plan, config, False)
    plan = filled(tmp_path / "same", bad=0, degenerate=3)
    with pytest.raises(RapModelError, match="12 of 20 groups of completions are identical"):
        seal(tmp_path / "same", plan, config, False)
    assert read_plan(tmp_path / "same").sealed is None
    assert finish(tmp_path / "same", allow_degenerate=True)
    assert read_plan(tmp_path / "same").sealed is not None
    assert finish(tmp_path / "same")  # sealed already
    with ScoreStore.load(tmp_path / "bad") as store:
        judge_whole(store, ScoreConfig(max_bad_fraction=0.14), False)


def test_finish_of_a_store_that_is_not_whole_or_at_work(tmp_path: Path) -> None:
    with pytest.raises(RapStoreError, match="no store that was planned"):
        finish(tmp_path / "none")
    planned(tmp_path)
    assert not finish(tmp_path)
    with Claims(tmp_path, rank=4) as theirs:
        assert theirs.take("2")
        with pytest.raises(RapStoreError, match=r"at work|are scoring .*shard 2: rank 4"):
            finish(tmp_path)


# ---------------------------------------------------------------- who has the store


def test_fault_35_one_process_alone_or_many(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    with Claims(tmp_path, rank=1) as theirs:
        store = JoinedStore(tmp_path, plan, theirs)
        assert store.claim(3)
        with pytest.raises(RapStoreError, match="workers are scoring .*shard 3: rank 1"):
            opened(tmp_path)
        assert has_plan(tmp_path)  # they go on
        store.write(3, *shard(store.shard_range(3)))
        with opened(tmp_path) as alone:
            assert alone.finished() == [3]
            assert not has_plan(tmp_path)
            with pytest.raises(RapStoreError, match="another run has taken this store"):
                store.claim(0)
        with pytest.raises(RapStoreError, match="another run has taken this store"):
            store.claim(0)
    fill(tmp_path)


def test_fault_35_two_that_plan_or_seal(tmp_path: Path) -> None:
    with Claims(tmp_path, rank=0) as first, Claims(tmp_path) as second:
        assert first.take("plan")
        with pytest.raises(RapStoreError, match="its plan: rank 0"):
            require_idle(tmp_path, second)
        first.release("plan")
        require_idle(tmp_path, second)


def test_claims_of_the_dead_keep_nobody_out(tmp_path: Path) -> None:
    planned(tmp_path)
    killed_holder(tmp_path, "2")
    fill(tmp_path)
    assert not (tmp_path / "claims").exists()


def test_another_machine_s_claim_is_watched_for_its_lease(tmp_path: Path, caplog) -> None:
    planned(tmp_path)
    foreign(tmp_path / "claims", "2", lease=0.3)
    with Claims(tmp_path, lease=0.1) as ours:
        require_idle(tmp_path, ours, wait=0.05)  # it gave no sign of life
    assert "waiting for a sign of life" in caplog.text
    foreign(tmp_path / "claims", "2", lease=1e6)
    ended = threading.Event()

    def beats() -> None:
        beat = 0
        while not ended.wait(0.01):
            beat += 1
            foreign(tmp_path / "claims", ".2", lease=1e6, beat=beat)
            os.replace(tmp_path / "claims" / ".2", tmp_path / "claims" / "2")

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        with Claims(tmp_path) as ours, pytest.raises(RapStoreError, match="other machines"):
            require_idle(tmp_path, ours, wait=0.2)
    finally:
        ended.set()
        thread.join()


def test_workers_need_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    planned(tmp_path)
    work(tmp_path, 60)
    with pytest.raises(RapStoreError, match="has no locks"):
        opened(tmp_path)
    monkeypatch.undo()
    assert ScoreStore.load(tmp_path).missing() == []


# ---------------------------------------------------------------- the plan


def test_a_plan_is_read_back(tmp_path: Path) -> None:
    assert read_plan(tmp_path) is None
    plan = planned(tmp_path)
    assert read_plan(tmp_path) == plan
    for text in (b"", b"[]", b"{", b'{"schema_version": 1}', b"[" * 100_000):
        (tmp_path / NAME).write_bytes(text)
        with pytest.raises(RapStoreError, match="plan.json: is damaged"):
            read_plan(tmp_path)
    found = json.loads(json.dumps(dataclasses.asdict(plan) | {"shards": ["a"]}))
    found |= {"kind": "plan", "schema_version": 99}
    (tmp_path / NAME).write_text(json.dumps(found))
    with pytest.raises(RapStoreError, match="schema 99"):
        read_plan(tmp_path)
    (tmp_path / NAME).write_text(json.dumps(found | {"schema_version": 1}))
    with pytest.raises(RapStoreError, match="other shards than the store has"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    ("n", "size"),
    [
        (1, 256),
        (1_000_000, 256),
        (1_000_001, 4096),
        (10**8, 4096),
        (32_768 * 4096, 4096),
        (32_768 * 4096 + 1, 8192),
        (2**31 + 7, 2**17),
        (2**33 + 1, 2**19),
    ],
)
def test_shards_by_the_number_of_samples(n: int, size: int) -> None:
    assert shard_size_for(n) == size
    if n > 1_000_000:
        assert -(-n // size) <= 32_768


def test_more_than_2_to_the_31_rows(tmp_path: Path) -> None:
    n = 2**33 + 5
    size = shard_size_for(n)
    header = {"n_samples": n, "shard_size": size, "fingerprint": {}}
    shards = Shards(tmp_path, header)
    last = shards.shard_range(shards.n_shards - 1)
    assert last.stop == n and last.start == (shards.n_shards - 1) * size > 2**31
    assert sum(len(shards.shard_range(k)) for k in range(shards.n_shards)) == n
    plan = make_plan(header, None, ("",) * shards.n_shards)
    plan.write(tmp_path)
    assert read_plan(tmp_path) == plan


# ---------------------------------------------------------------- temporary names


def test_temporary_names_are_one_process_s(tmp_path: Path) -> None:
    a, b = tmp_name("scores-00000.parquet"), tmp_name("scores-00000.parquet")
    assert a != b and f"-{os.getpid()}-" in a and me().machine in a
    assert a.startswith(".scores-00000.parquet.") and a.endswith(".tmp")


def test_fault_33_only_stale_temporary_files_go(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path)
    ours, machine = me(), me().machine
    child = FORK.Process(target=time.sleep, args=(0,))
    child.start()
    child.join()
    now = time.time()
    names = {
        f".scores-00001.parquet.host-{machine}-{ours.pid}-0a0a0a0a.tmp": True,
        f".scores-00001.parquet.host-{machine}-{child.pid}-0a0a0a0a.tmp": False,
        ".scores-00001.parquet.far-away-ffffffff-12-0a0a0a0a.tmp": True,
        ".scores-00001.parquet.far-away-ffffffff-13-0b0b0b0b.tmp": False,  # hours old
        ".scores-00001.parquet.12345.tmp": False,  # of an older version
    }
    for name in names:
        (path / name).write_bytes(b"half")
    os.utime(path / list(names)[3], (now - 7200, now - 7200))
    opened(path).close()
    left = {name for name in names if (path / name).exists()}
    assert left == {name for name, stays in names.items() if stays}
    assert not [p for p in path.glob(".clock*")]
    assert stale_tmps(path, ["store.json", "scores-00000.parquet"], 0) == []
