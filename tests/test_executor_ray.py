"""Executor ray on a real cluster of this machine: two workers, the bytes of one process,
whoever dies. What the crew does where nothing of Ray is needed: tests/test_crew.py.

All runs but one share a cluster, which is bounded: two cores, 100 MB of objects.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from executor_inputs import OPTIONS, N, make_rows
from test_executors import assert_same, environment

import rap
import rap.demo.tiny
from rap.errors import RapConfigError, RapStoreError
from rap.scores.claims import Claim, Claims
from rap.scores.owner import Owner, lives
from rap.scores.shardplan import DRIVER_FOLDER
from rap.scores.store import ScoreStore
from rap.scoring.executors import raycluster
from rap.scoring.executors.rayworker import DRIVER

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own
    ray = pytest.importorskip("ray", reason="needs ray: pip install 'rap-select[ray]'")

pytestmark = [
    pytest.mark.timeout(2400),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # its sockets and log files
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


PATIENCE = 900.0
"""Seconds: a driver and a worker import torch and Ray, on a machine with other work."""


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a model and data.jsonl beside its images."""
    folder = tmp_path_factory.mktemp("made")
    model, processor = rap.demo.tiny.tiny_qwen2_5_vl()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    rows = [{**row, "image": Path(row["image"]).name} for row in make_rows(folder)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Its address; this process is connected to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 << 20,
            runtime_env={"env_vars": {"PYTHONPATH": environment()["PYTHONPATH"]}},
        )
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


def run(made: Path, store: Path, **options: Any) -> rap.Scores:
    given = {**OPTIONS, "progress": False, "store": store, **options}
    return rap.score(str(made / "model"), None, str(made / "data.jsonl"), **given)


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory) -> Path:
    """What one process makes of it."""
    store = tmp_path_factory.mktemp("whole") / "store"
    run(made, store)
    return store


def shell(made: Path, store: Path, *options: str, **more: str) -> subprocess.Popen[str]:
    """``rap score`` as a driver of its own."""
    command = [sys.executable, "-m", "rap", "score", str(made / "data.jsonl")]
    command += ["--model", str(made / "model"), "--store", str(store)]
    command += ["--evidence", "answer", "--shard-size", "4", "--batch-size", "2"]
    command += ["--m1", "3", "--m0", "2", "--max-new-tokens", "6"]
    command += ["--max-bad-fraction", "0.1", "--executor", "ray", *options]
    env = environment(**more)
    env.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def owners(store: Path) -> dict[str, Owner]:
    """{shard: the worker that is at it}"""
    found = {}
    for path in (store / "claims").glob("[0-9]*"):
        try:
            claim = Claim.of(path.read_bytes())
        except FileNotFoundError:
            continue
        if claim is not None:
            found[path.name] = claim.owner
    return found


def finished(store: Path) -> int:
    return len(list(store.glob("scores-*.parquet")))


def nothing_left(store: Path) -> bool:
    """No worker of ours on the cluster, nothing of the driver in the store."""
    free = ray.available_resources().get("CPU") == 2.0
    return free and not (store / DRIVER_FOLDER).exists() and not owners(store)


# ---------------------------------------------------------------- the same bytes


@pytest.mark.parametrize(
    "evidence", ["answer", pytest.param("cascade", marks=pytest.mark.proof)]
)
def test_two_workers_write_the_bytes_of_one_process(
    cluster, made, whole, tmp_path, evidence
) -> None:
    if evidence != "answer":
        whole = tmp_path / "local"
        run(made, whole, evidence=evidence)
    store = tmp_path / "store"
    scores = run(made, store, evidence=evidence, executor="ray", workers=2, profile=True)
    assert scores.meta["cost"]["samples"] == N == len(scores)
    assert scores.meta["counts"]["scored"] == N - 1
    profile = scores.meta["profile"]
    assert 1 <= profile["runs"] <= 2 and profile["samples"] >= N - 1
    assert_same(store, whole, tmp_path)
    until(lambda: nothing_left(store))
    assert any(node["Alive"] for node in ray.nodes())  # it is the user's cluster
    again = run(made, store, evidence=evidence, executor="ray", workers=1)
    assert again.meta["counts"] == scores.meta["counts"]
    assert_same(store, whole, tmp_path)


@pytest.mark.proof
def test_workers_killed_at_random_moments_cost_their_shards(
    cluster, made, whole, tmp_path, caplog
) -> None:
    chance = random.Random("ray 15")
    store, killed, over = tmp_path / "store", [], threading.Event()

    def kill() -> None:
        for least in sorted(chance.sample(range(5), 2)):  # of six shards
            while not over.is_set():
                at_work = owners(store) if finished(store) >= least else {}
                if at_work:
                    time.sleep(chance.uniform(0, 0.1))
                    owner = chance.choice(list(at_work.values()))
                    if owner not in killed and lives(owner):
                        os.kill(owner.pid, signal.SIGKILL)
                        killed.append(owner)
                        break
                time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run(made, store, executor="ray", workers=2, max_restarts=5, max_shard_failures=9)
    finally:
        over.set()
        killer.join()
    assert killed
    assert caplog.text.count("It is started again") >= 1
    assert_same(store, whole, tmp_path)
    until(lambda: nothing_left(store))


# ---------------------------------------------------------------- the driver's end


def interrupted(made: Path, folder: Path, address: str, how: int) -> tuple[Path, int, str]:
    """A run of the command line that got this signal with some of its shards scored, some
    not: (store, exit code, stderr). Once more where the signal came too late."""
    for attempt in range(5):
        store = folder / f"store{attempt}"
        driver = shell(made, store, "--workers", "1", "--ray-address", address)
        code, said = signalled(driver, store, how)
        if ScoreStore.load(store).missing():
            return store, code, said
    raise AssertionError("every signal came too late")


def signalled(driver: subprocess.Popen[str], store: Path, how: int) -> tuple[int, str]:
    """What became of a driver that gets a signal when the first shard is scored. Its
    worker stands still meanwhile: on a quiet machine it would have done the rest."""
    until(lambda: (finished(store) and owners(store)) or driver.poll() is not None)
    workers = [owner.pid for owner in owners(store).values()]
    send(workers, signal.SIGSTOP)
    driver.send_signal(how)
    time.sleep(5)  # until the driver has told them to stop, on a loaded machine too
    send(workers, signal.SIGCONT)
    _, said = driver.communicate(timeout=PATIENCE)
    assert finished(store), said
    return driver.returncode, said


def send(processes: list[int], how: int) -> None:
    """A signal to those that are still there."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, how)


def resumed_by_local(made: Path, store: Path) -> None:
    """As soon as the workers are gone, for which Ray takes its time after kill -9."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            run(made, store)
            return
        except RapStoreError as error:
            assert "workers are scoring into this store" in str(error)
            assert time.monotonic() < end
            time.sleep(1)


@pytest.mark.proof
def test_a_driver_that_is_killed_is_resumed_by_local(
    cluster, made, whole, tmp_path
) -> None:
    store, code, _ = interrupted(made, tmp_path, cluster, signal.SIGKILL)
    assert code == -signal.SIGKILL
    resumed_by_local(made, store)
    assert_same(store, whole, tmp_path)
    until(lambda: ray.available_resources().get("CPU") == 2.0)


@pytest.mark.parametrize(("how", "ends"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.proof
def test_fault_32_a_signal_leaves_a_store_that_local_resumes_and_no_worker(
    cluster, made, whole, tmp_path, how, ends
) -> None:
    """Ctrl-C and SIGTERM, of which Ray's own calls know no difference."""
    store, code, said = interrupted(made, tmp_path, cluster, how)
    assert code == ends, said
    assert f"samples are kept in {store}; the same command goes on" in said
    assert said.rstrip().endswith("rap: stopped")
    assert "Traceback" not in said
    until(lambda: nothing_left(store))
    run(made, store)  # at once: no claim is left
    assert_same(store, whole, tmp_path)


@pytest.mark.proof
def test_fault_32_sigterm_while_a_cluster_of_our_own_starts(made, tmp_path) -> None:
    """Of which nothing is left. Ray waits here, for as long as what it has started stands
    still: until then its own handler is there."""
    mark = f"RAP_TEST_{uuid.uuid4().hex}"
    driver = shell(made, tmp_path / "store", "--workers", "1", **{mark: "1"})
    until(lambda: gcs_of(mark) or driver.poll() is not None)
    held = gcs_of(mark)
    send(held, signal.SIGSTOP)
    driver.send_signal(signal.SIGTERM)
    time.sleep(1)
    send(held, signal.SIGCONT)
    _, said = driver.communicate(timeout=PATIENCE)
    assert held and driver.returncode == 143, said
    assert said.rstrip().endswith("rap: stopped")
    assert "Traceback" not in said
    until(lambda: not marked(mark))


@pytest.mark.parametrize(("code", "asked"), [(int(signal.SIGTERM), 1), (1, 0), ("gone", 0)])
def test_fault_32_ray_ends_the_process_for_other_reasons_than_sigterm(code, asked) -> None:
    """Only its own handler's end, which has the signal's number, is SIGTERM."""
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: called.append(number))
    try:
        with pytest.raises(SystemExit), raycluster._sigterm_kept():
            raise SystemExit(code)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert called == [signal.SIGTERM] * asked


def gcs_of(mark: str) -> list[int]:
    """The first process that Ray starts."""
    return [pid for pid in marked(mark) if "gcs_server" in command_of(pid)]


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""


@pytest.mark.proof
def test_a_cluster_of_our_own_ends_with_the_run(made, whole, tmp_path) -> None:
    """No address: it is started, and nothing of it is left."""
    mark = f"RAP_TEST_{uuid.uuid4().hex}"
    store = tmp_path / "store"
    driver = shell(made, store, "--workers", "1", "--progress", **{mark: "1"})
    out, said = driver.communicate(timeout=2 * PATIENCE)
    assert driver.returncode == 0, said
    assert f"{N} samples in {store}" in out
    assert "scoring: 100%" in said  # the driver's bar
    assert_same(store, whole, tmp_path)
    until(lambda: not marked(mark))


def marked(mark: str) -> list[int]:
    """Processes with this variable."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


# ---------------------------------------------------------------- refused


def test_a_gpu_that_the_cluster_has_not_is_refused_first(cluster, tmp_path, made) -> None:
    with pytest.raises(RapConfigError, match="none of the cluster's 1 nodes has a GPU"):
        rap.score(
            *("there/is/no/such/folder", None, str(made / "data.jsonl")),
            store=tmp_path / "store",
            executor="ray",
            workers=8,
            gpus_per_worker=1,
        )
    assert not (tmp_path / "store").exists()


@pytest.mark.proof
def test_a_model_that_no_worker_finds_names_the_node(cluster, tmp_path, made) -> None:
    from rap.errors import RapModelError

    with pytest.raises(RapModelError, match=r"worker 0 on .*no such folder"):
        rap.score(
            *(str(tmp_path / "nowhere"), None, str(made / "data.jsonl")),
            store=tmp_path / "store",
            executor="ray",
            workers=1,
        )
    until(lambda: nothing_left(tmp_path / "store"))


def test_a_second_driver_on_a_store_is_refused(cluster, tmp_path, made) -> None:
    store = tmp_path / "store"
    with Claims(store / DRIVER_FOLDER) as claims:
        assert claims.take(DRIVER)
        with pytest.raises(RapStoreError, match=f"its driver: process {os.getpid()}"):
            run(made, store, executor="ray", workers=1)
        with pytest.raises(RapStoreError, match=f"its driver: process {os.getpid()}"):
            run(made, store)


def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path, made) -> None:
    driver = shell(made, tmp_path / "store", "--ray-address", "127.0.0.1:1")
    _, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 2, said
    assert "ray_address = '127.0.0.1:1': " in said and "ray start --head" in said
    assert "Traceback" not in said
