"""Executor ray without Ray: the crew over workers that are played, seeded; what it refuses
before a cluster is asked for; settings and command line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import pickle
import random
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import rap
from rap.cli.commands import main
from rap.cli.shell import Terminated, on_sigterm
from rap.config import ExecutorConfig, ExecutorOptions, ScoreConfig, ScoreOptions
from rap.engines import EngineConfig
from rap.environment import version
from rap.errors import (
    RapConfigError,
    RapDeviceError,
    RapInputError,
    RapModelError,
    RapStoreError,
    RapWorkerError,
)
from rap.samples.sampleset import open_samples
from rap.scores.claims import Claim, Claims
from rap.scores.owner import Owner, me
from rap.scores.shardplan import DRIVER_FOLDER
from rap.scoring.engine import resolve_all
from rap.scoring.executors import ray as ray_executor
from rap.scoring.executors import raycluster, rayworker
from rap.scoring.executors.crew import Begun, Crew, Place, Report, WorkerDied
from rap.scoring.executors.ray import RayExecutor, bury, make_order, require_paths
from rap.scoring.executors.raycluster import most_workers, require_room, why
from rap.scoring.executors.rayworker import DRIVER, Order, RayWorker
from rap.scoring.session import Recipe

N, SIZE = 47, 5
SHARDS = 10
VERSIONS = {"rap-select": version("rap-select"), "torch": "2.14.1"}


class Worker:
    """A played worker."""

    def __init__(self, number: int, pid: int) -> None:
        self.number, self.alive = number, True
        self.place = Place(f"node{number}", Owner("far", "f" * 8, pid, 1), VERSIONS, True)


class Played:
    """A cluster whose workers answer in random order, at once.

    ``deaths``: the share of questions at which a worker dies. ``deadly``: {what it is
    asked, or a shard: what it dies of or raises}. ``room``: workers that are ever started.
    ``taken``: shards that another run has claimed, so many times each. ``rounds``: passes
    before the last."""

    def __init__(self, seed: int = 0, *, deaths: float = 0.0, room: int = 99) -> None:
        self.random, self.deaths, self.place_for = random.Random(seed), deaths, room
        self.deadly: dict[Any, Exception] = {}
        self.once: dict[Any, Exception] = {}
        self.stores: dict[Worker, set[int]] = {}
        self.taken: Counter[int] = Counter()
        self.whole: set[int] = set()
        self.first: set[int] = set()
        self.workers: list[Worker] = []
        self.asked: list[tuple[int, str, tuple[Any, ...]]] = []
        self.tickets: dict[int, tuple[Worker, str, tuple[Any, ...]]] = {}
        self.sealed = 0
        self.most_bad = 1
        self.rounds = 0

    def start(self, number: int) -> Worker:
        self.workers.append(Worker(number, len(self.workers) + 1))
        return self.workers[-1]

    def ask(self, worker: Worker, what: str, *arguments: Any) -> int:
        assert worker.alive
        self.asked.append((worker.number, what, arguments))
        self.tickets[len(self.asked)] = worker, what, arguments
        return len(self.asked)

    def wait(self, asked: Any, seconds: float) -> list[int]:
        able = [t for t in asked if self.tickets[t][0].number < self.place_for]
        return [self.random.choice(able)] if able else []

    def answer(self, asked: int) -> Any:
        worker, what, arguments = self.tickets.pop(asked)
        key = arguments[0] if what == "score" else what
        error = self.once.pop(key, None) or self.deadly.get(key)
        if error is not None:
            worker.alive = not isinstance(error, WorkerDied)
            raise error
        if self.random.random() < self.deaths:
            worker.alive = False
            raise WorkerDied("killed by chance")
        return getattr(self, f"_{what}")(worker, *arguments)

    def end(self, worker: Worker) -> None:
        worker.alive = False

    def room(self) -> str:
        return "0 GPUs are free"

    # what workers do

    def _look(self, worker: Worker) -> Place:
        return worker.place

    def _open(self, worker: Worker) -> None:
        pass

    def _begin(self, worker: Worker, number: int) -> Begun:
        self.stores[worker] = self.whole if number == self.rounds else self.first
        return self._begun(worker, False)

    def _begun(self, worker: Worker, sealed: bool) -> Begun:
        missing = tuple(k for k in range(SHARDS) if k not in self.stores[worker])
        return Begun(N, SIZE, missing, sealed)

    def _score(self, worker: Worker, k: int, dead: frozenset[Owner]) -> Report:
        if self.taken[k] > 0:
            self.taken[k] -= 1
            return Report(whole=False)
        self.stores[worker].add(k)
        return Report(whole=True, bad=self.most_bad)

    def _seal(self, worker: Worker) -> Begun:
        whole = len(self.stores[worker]) == SHARDS
        self.sealed += whole
        return self._begun(worker, whole)

    def _close(self, worker: Worker) -> None:
        pass

    def scored(self) -> Counter[int]:
        return Counter(a[0] for _, what, a in self.asked if what == "score")


def crew_of(cluster: Played, workers: int = 3, **settings: Any) -> Crew:
    config = ExecutorConfig(executor="ray", workers=workers, **settings)
    return Crew(cluster, workers, config)


# ---------------------------------------------------------------- who scores what


@pytest.mark.parametrize("workers", [1, 2, 3, 20])
def test_every_shard_is_scored_once_and_the_store_sealed_once(workers: int) -> None:
    cluster = Played(workers)
    crew = crew_of(cluster, workers)
    crew.fill(True, False)
    crew.stop(1.0)
    assert cluster.scored() == Counter(range(SHARDS))
    assert cluster.sealed == 1
    assert not any(worker.alive for worker in cluster.workers)
    assert crew.members == []


@pytest.mark.parametrize("seed", range(40))
def test_workers_that_die_at_any_moment_cost_only_their_shards(seed: int) -> None:
    cluster = Played(seed, deaths=0.15)
    cluster.rounds = 1
    crew = crew_of(cluster, 3, max_restarts=50, max_shard_failures=50)
    crew.fill(False, False)
    crew.fill(True, False)
    cluster.deaths = 0.0
    crew.stop(1.0)
    assert cluster.first == cluster.whole == set(range(SHARDS))
    assert cluster.sealed >= 2
    again = sum(cluster.scored().values()) - 2 * SHARDS
    assert 0 <= again <= len(cluster.workers) - 3
    assert not any(worker.alive for worker in cluster.workers)


def test_a_worker_is_told_numbers_and_who_is_dead_and_nothing_else() -> None:
    cluster = Played(1)
    cluster.once["open"] = WorkerDied("once")
    crew = crew_of(cluster, 1)
    crew.fill(True, False)
    dead = {a[1] for _, what, a in cluster.asked if what == "score"}
    assert dead == {frozenset({cluster.workers[0].place.owner})}
    sizes = [len(pickle.dumps(a)) for _, what, a in cluster.asked if what == "score"]
    assert max(sizes) < 1000


def test_what_is_scored_already_is_not_asked_for() -> None:
    cluster = Played()
    cluster.whole |= {0, 3, 9}
    crew_of(cluster).fill(True, False)
    assert cluster.scored() == Counter({1, 2, 4, 5, 6, 7, 8})


def test_a_shard_that_another_run_has_claimed_is_asked_for_again(monkeypatch) -> None:
    monkeypatch.setattr("rap.scoring.executors.crew.AGAIN", 0.01)
    cluster = Played()
    cluster.taken[4] = 3
    crew_of(cluster, 2).fill(True, False)
    assert cluster.scored() == Counter(range(SHARDS)) + Counter({4: 3})
    assert cluster.sealed == 1


# ---------------------------------------------------------------- caps


def test_a_shard_that_kills_its_workers_is_named_and_the_rest_is_scored(caplog) -> None:
    cluster = Played(3)
    cluster.deadly[7] = WorkerDied("out of memory")
    crew = crew_of(cluster, 2, max_restarts=9, max_shard_failures=3)
    with pytest.raises(RapWorkerError) as caught:
        crew.fill(True, False)
    assert cluster.whole == set(range(SHARDS)) - {7}
    assert cluster.scored()[7] == 3
    assert cluster.sealed == 0
    text = str(caught.value)
    assert "shard 7 (samples 35 to 39)" in text and "3 times" in text
    assert "out of memory" in text
    assert caplog.text.count("died at shard 7 (samples 35 to 39): out of memory") == 3


def test_restarts_in_a_row_are_capped_and_the_last_shard_and_cause_named() -> None:
    cluster = Played()
    cluster.deadly |= {k: WorkerDied(f"cause {k}") for k in range(SHARDS)}
    crew = crew_of(cluster, 1, max_restarts=4, max_shard_failures=2)
    with pytest.raises(RapWorkerError, match=r"5 times in a row \(max_restarts = 4\)") as e:
        crew.fill(True, False)
    assert "at shard 2 (samples 10 to 14): cause 2" in str(e.value)
    assert len(cluster.workers) == 5
    crew.stop(1.0)


def test_a_scored_shard_ends_a_row_of_deaths() -> None:
    """One death a shard, ten in all, and never more than one in a row."""
    cluster = Played()
    cluster.once = {k: WorkerDied("first") for k in range(SHARDS)}
    crew_of(cluster, 1, max_restarts=1).fill(True, False)
    assert cluster.whole == set(range(SHARDS))
    assert len(cluster.workers) == 1 + SHARDS


def test_a_worker_that_dies_while_it_loads_is_named_with_what_it_did() -> None:
    cluster = Played()
    cluster.deadly["open"] = WorkerDied("the GPU fell off the bus")
    crew = crew_of(cluster, 1, max_restarts=2)
    with pytest.raises(RapWorkerError, match="worker 0 on node0 died 3 times") as caught:
        crew.fill(True, False)
    assert "'open': the GPU fell off the bus" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [MemoryError("host"), RapDeviceError("CUDA"), OSError(5, "I/O"), RuntimeError("CUDA")],
)
def test_what_may_be_the_machine_s_fault_is_tried_on_another_worker(error) -> None:
    cluster = Played()
    cluster.deadly[2] = error
    crew = crew_of(cluster, 2, max_shard_failures=2)
    with pytest.raises(RapWorkerError, match=f"Shard 2: {type(error).__name__}: "):
        crew.fill(True, False)
    assert cluster.whole == set(range(SHARDS)) - {2}


@pytest.mark.parametrize(
    "error",
    [
        *(RapInputError("bad"), RapModelError("bad"), RapConfigError("bad")),
        *(RapStoreError("disk full"), KeyError("bad")),
    ],
)
def test_an_error_of_the_run_ends_it_as_in_one_process(error) -> None:
    cluster = Played()
    cluster.deadly[2] = error
    with pytest.raises(type(error)) as caught:
        crew_of(cluster, 2).fill(True, False)
    assert caught.value is error
    assert cluster.scored()[2] == 1


def test_an_error_of_loading_names_the_node() -> None:
    cluster = Played()
    cluster.deadly["open"] = RapModelError("model m: no such folder")
    with pytest.raises(RapModelError, match="worker 0 on node0: model m: no such folder"):
        crew_of(cluster, 1).fill(True, False)


def test_workers_that_the_driver_s_end_stopped_end_the_run() -> None:
    cluster = Played()
    cluster._score = lambda *_: Report(whole=False, stopped=True)  # type: ignore[method-assign]
    with pytest.raises(RapStoreError, match="another run has taken this store"):
        crew_of(cluster, 1).fill(True, False)


# ---------------------------------------------------------------- where workers run


def test_a_node_that_does_not_see_the_store_is_named() -> None:
    cluster = Played()
    crew = crew_of(cluster, 1)
    place = cluster.workers[0].place
    cluster.workers[0].place = dataclasses.replace(place, sees=False, node="node7")
    with pytest.raises(RapStoreError, match="not there on node7"):
        crew.fill(True, False)
    assert [what for _, what, _ in cluster.asked] == ["look"]  # nothing was loaded


@pytest.mark.parametrize("name, other", [("torch", "node"), ("rap-select", "the driver")])
def test_another_version_on_a_node_is_named(name: str, other: str) -> None:
    cluster = Played()
    crew = crew_of(cluster, 2)
    place = cluster.workers[1].place
    changed = dict(VERSIONS) | {name: "9.9"}
    cluster.workers[1].place = dataclasses.replace(place, versions=changed)
    with pytest.raises(RapConfigError, match=f"{name} is .* on node") as caught:
        crew.fill(True, False)
    assert "9.9" in str(caught.value) and other in str(caught.value)


def test_fewer_workers_than_asked_for_score_it_all() -> None:
    """The cluster has room for one of five."""
    cluster = Played(room=1)
    crew = crew_of(cluster, 5)
    crew.fill(True, False)
    assert cluster.whole == set(range(SHARDS))
    crew.stop(1.0)
    assert not any(worker.alive for worker in cluster.workers)


def test_scoring_begins_with_min_workers() -> None:
    cluster = Played(5)
    crew_of(cluster, 4, min_workers=3).fill(True, False)
    first = next(i for i, (_, what, _) in enumerate(cluster.asked) if what == "score")
    begun = {n for n, what, _ in cluster.asked[:first] if what == "begin"}
    assert len(begun) >= 3


def test_it_is_said_that_there_is_no_room(caplog) -> None:
    cluster = Played(room=0)
    now = [0.0]
    config = ExecutorConfig(executor="ray", workers=1)
    crew = Crew(cluster, 1, config, clock=lambda: now[0])

    def wait(asked: Any, seconds: float) -> list[int]:
        now[0] += seconds
        if now[0] > 150:
            raise KeyboardInterrupt
        return []

    cluster.wait = wait  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        crew.fill(True, False)
    assert caplog.text.count("no worker could be started yet: 0 GPUs are free") == 2


def test_a_worker_that_does_not_end_is_killed() -> None:
    cluster = Played()
    crew = crew_of(cluster, 2)
    crew.fill(True, False)
    now = iter(range(1000))
    crew.clock = lambda: next(now)
    cluster.wait = lambda asked, seconds: []  # type: ignore[method-assign]
    crew.stop(5.0)
    assert not any(worker.alive for worker in cluster.workers)


# ---------------------------------------------------------------- refused before a cluster


def recipe_of(**more: Any) -> Recipe:
    given: dict[str, Any] = {"model": "m", "processor": None, "dataset": [], **more}
    return Recipe(**given, config=ScoreConfig(), engine=EngineConfig())


def test_a_model_of_this_process_is_refused_with_what_to_give() -> None:
    with pytest.raises(RapConfigError, match=r"model\.save_pretrained\(folder\)"):
        require_paths(recipe_of(model=object()))
    with pytest.raises(RapConfigError, match="processor: executor 'ray'"):
        require_paths(recipe_of(processor=object()))
    require_paths(recipe_of(model=None))
    require_paths(recipe_of(model=Path("m"), processor="p"))


def test_ray_that_is_not_installed_is_one_sentence(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("rap.errors._installed", lambda name: name != "ray")
    with pytest.raises(RapConfigError, match=r"needs ray: pip install .*\[ray\]"):
        rap.score("m", None, [{}], store=tmp_path / "s", executor="ray")
    assert not (tmp_path / "s").exists()


@pytest.fixture
def sigterm():
    """The shell's handler, put back afterwards."""
    before = signal.signal(signal.SIGTERM, on_sigterm)
    yield on_sigterm
    signal.signal(signal.SIGTERM, before)


def in_a_call_of_ray(number: int) -> None:
    """A signal in ``ray.wait`` or ``ray.get``: their C++ drops what the handler raised."""
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(number)
    raise KeyboardInterrupt


def played_ray(monkeypatch, **functions: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(**functions))
    monkeypatch.setattr(raycluster, "require_extra", lambda *_: None)


def test_fault_32_sigterm_in_a_call_of_ray_is_not_ctrl_c(monkeypatch, sigterm) -> None:
    played_ray(monkeypatch, is_initialized=lambda: True)
    for number, kind in (
        (signal.SIGTERM, Terminated),
        (signal.SIGINT, KeyboardInterrupt),
    ):
        with pytest.raises(KeyboardInterrupt) as stopped, raycluster.connected(None):
            in_a_call_of_ray(number)
        assert type(stopped.value) is kind
        assert signal.getsignal(signal.SIGTERM) is sigterm


def test_fault_32_sigterm_while_ray_starts_is_the_callers(monkeypatch, sigterm) -> None:
    """Ray has put a handler of its own there by then, which would end with 15, or 1."""

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    played_ray(monkeypatch, is_initialized=lambda: False, init=init)
    with pytest.raises(Terminated), raycluster.connected(None):
        raise AssertionError("connected")
    assert signal.getsignal(signal.SIGTERM) is sigterm
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # of nobody: Ray's word stands
    with pytest.raises(SystemExit), raycluster.connected(None):
        raise AssertionError("connected")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_thread_that_can_set_no_handler_is_connected(monkeypatch, sigterm) -> None:
    calls: list[str] = []
    played_ray(
        monkeypatch,
        is_initialized=lambda: False,
        init=lambda **_: calls.append("init"),
        shutdown=lambda: calls.append("shutdown"),
    )

    def connect() -> None:
        with raycluster.connected(None):
            calls.append("connected")

    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    assert calls == ["init", "connected", "shutdown"]
    assert signal.getsignal(signal.SIGTERM) is sigterm


class Nodes:
    """What ``ray.nodes`` says."""

    def __init__(self, *resources: dict[str, float]) -> None:
        self.found = [{"Alive": True, "Resources": r} for r in resources]
        self.found.append({"Alive": False, "Resources": {"GPU": 8.0, "CPU": 64.0}})

    def nodes(self) -> list[dict[str, Any]]:
        return self.found


def test_gpus_that_no_node_has_are_refused() -> None:
    cpu, gpu = Nodes({"CPU": 4.0}), Nodes({"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0})
    with pytest.raises(RapConfigError, match="= 1: none of the cluster's 1"):
        require_room(cpu, 1, 1)
    assert require_room(cpu, None, 1) == 0
    assert require_room(cpu, 0, 1) == 0
    assert require_room(gpu, None, 1) == 1
    assert require_room(gpu, 0.5, 8) == 0.5
    with pytest.raises(RapConfigError, match="cpus_per_worker = 9: no node"):
        require_room(gpu, None, 9)
    assert most_workers(cpu, 0) == 1
    assert most_workers(gpu, 1) == 2
    assert most_workers(gpu, 0.5) == 4
    assert most_workers(Nodes({"GPU": 1.0}, {"GPU": 1.0}), 1 / 3) == 6


def test_a_worker_with_several_gpus_needs_one_node_that_has_them() -> None:
    small, large = Nodes({"GPU": 2.0}, {"GPU": 2.0}), Nodes({"GPU": 2.0}, {"GPU": 8.0})
    with pytest.raises(RapConfigError, match="= 4: none of the cluster's 2 nodes has more"):
        require_room(small, 4, 0)
    assert require_room(small, 2, 0) == 2 and most_workers(small, 2) == 2
    assert require_room(large, 4, 0) == 4 and most_workers(large, 4) == 2
    assert most_workers(large, 3) == 2


def test_gpus_that_torch_does_not_see_are_refused_by_the_worker(monkeypatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    rayworker.require_seen(0)
    rayworker.require_seen(1)
    with pytest.raises(RapConfigError, match=r"gave this worker GPUs \(2\), .* sees 1"):
        rayworker.require_seen(2)


def test_a_device_that_ray_gives_is_not_said_otherwise() -> None:
    asked = ray_executor._gpus_asked
    assert asked(recipe_of(), None) is None
    assert asked(recipe_of(), 0.5) == 0.5
    assert asked(recipe_of(loading={"device": "cpu"}), None) == 0
    assert asked(recipe_of(loading={"device": "cuda"}), None) == 1
    assert asked(recipe_of(model=None), None) == 0
    for device, gpus in (("cuda:1", 1), ("cuda", 0)):
        with pytest.raises(RapConfigError, match="sees the GPU that Ray gives it"):
            asked(recipe_of(loading={"device": device}), gpus)


def test_a_death_is_told_in_ray_s_own_sentence() -> None:
    text = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: RayWorker\n"
        "\tactor_id: 1\n\tpid: 7\n\tip: 10.0.0.7\nThe actor is dead because its worker "
        "process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
        "unexpectedly exits with a connection error code 2. End of file. There are some "
        "potential root causes. (1) The process is killed by SIGKILL"
    )
    assert why(text) == (
        "Worker unexpectedly exits with a connection error code 2. End of file."
    )
    assert why("Memory was low:\n  killed") == "Memory was low: killed"


# ---------------------------------------------------------------- what is sent


def data_in(folder: Path) -> Path:
    rows = [{"question": "q", "answer": "a", "image": f"{i}.png"} for i in range(3)]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_paths_are_sent_from_the_root_and_no_data_with_them(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data_in(tmp_path)
    (tmp_path / "model").mkdir()
    samples = open_samples("data.jsonl", columns={"answer": "answer"}, root=".")
    recipe = recipe_of(model="model", dataset=samples, loading={"dtype": "float32"})
    order = make_order(recipe, samples, tmp_path / "s", 2, 9.0, 0)
    again = pickle.loads(pickle.dumps(order))
    sent = again.recipe
    assert sent.model == str(tmp_path / "model")
    assert sent.dataset == str(tmp_path / "data.jsonl")
    assert sent.columns == {"answer": "answer"} and sent.root == str(tmp_path)
    assert sent.loading == {"dtype": "float32", "device": "cpu"}
    assert (again.path, again.root, again.cwd) == ("data.jsonl", ".", str(tmp_path))
    assert again.driver == me() and sent.progress is False and again.network is False
    on_gpu = make_order(recipe, samples, tmp_path / "s", 2, 9.0, 1)
    assert on_gpu.recipe.loading == {"dtype": "float32"} and on_gpu.gpus == 1
    share = make_order(recipe, samples, tmp_path / "s", 2, 9.0, 0.5)
    assert share.recipe.loading == {"dtype": "float32"} and share.gpus == 1
    split = make_order(recipe, samples, tmp_path / "s", 2, 9.0, 2.0)
    assert split.recipe.loading == {"dtype": "float32", "device_map": "auto"}
    assert split.gpus == 2 and order.gpus == 0
    asked = recipe_of(dataset=samples, loading={"device_map": "sequential"})
    mapped = make_order(asked, samples, tmp_path / "s", 2, 9.0, 2.0)
    assert mapped.recipe.loading == {"device_map": "sequential"}
    server = make_order(recipe_of(model=None), samples, tmp_path / "s", 2, 9.0, 2.0)
    assert server.gpus == 0


def test_names_that_are_no_paths_are_sent_as_they_are(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data_in(tmp_path)
    absolute = ray_executor._absolute
    assert absolute("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert absolute("s3://bucket/data.parquet") == "s3://bucket/data.parquet"
    assert absolute("*.jsonl") == str(tmp_path / "*.jsonl")
    assert absolute(None) is None


def test_what_a_driver_may_fetch_its_workers_may(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples = open_samples(data_in(tmp_path))
    for path in ("s3://bucket/data.jsonl", "org/data:train"):
        samples.path = path
        order = make_order(recipe_of(dataset=samples), samples, tmp_path, 1, 9.0, 0)
        assert order.network and order.recipe.dataset == path
    samples.path = str(tmp_path / "data.jsonl")
    assert not make_order(recipe_of(), samples, tmp_path, 1, 9.0, 0).network


def test_a_worker_knows_the_store_by_its_driver_s_claim(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rayworker, "SHOWS", 0.0)
    order = Order(recipe_of(), tmp_path, None, None, False, "/", 1, 9.0, me())
    worker = RayWorker(order, 0)
    assert worker.look().sees is False
    with Claims(tmp_path / DRIVER_FOLDER) as claims:
        assert claims.take(DRIVER)
        place = worker.look()
        assert place.sees is True and place.owner == me()
        assert place.versions["rap-select"] == version("rap-select")
        worker._go_on()
        another = dataclasses.replace(me(), started=me().started + 1)
        stranger = RayWorker(dataclasses.replace(order, driver=another), 0)
        assert stranger.look().sees is False
    with pytest.raises(KeyboardInterrupt):
        worker._go_on()


def test_claims_of_the_dead_are_given_back_and_no_others(tmp_path) -> None:
    dead, living = (Owner("far", "f" * 8, pid, 1) for pid in (1, 2))
    folder = tmp_path / "claims"
    folder.mkdir()
    for name, owner in (("3", dead), ("4", living), ("plan", dead)):
        (folder / name).write_bytes(Claim(owner, "t", 0, 1e9).text())
    bury(tmp_path, {dead}, 1e9)
    assert [path.name for path in folder.iterdir()] == ["4"]
    bury(tmp_path / "nowhere", {dead}, 1e9)
    assert not (tmp_path / "nowhere").exists()


# ---------------------------------------------------------------- settings


def test_workers_are_processes_of_ray_and_threads_otherwise() -> None:
    config, _, executor = resolve_all(None, {"workers": 8, "executor": "ray"}, "rap.score")
    assert (config.workers, executor.workers) == (ScoreConfig().workers, 8)
    config, _, executor = resolve_all(None, {"workers": 8}, "rap.score")
    assert (config.workers, executor.workers) == (8, None)
    base = ScoreConfig(workers=5)
    config, _, executor = resolve_all(base, {"workers": 8, "executor": "ray"}, "rap.score")
    assert (config.workers, executor.workers) == (5, 8)


def test_the_command_line_and_select_mean_the_same(tmp_path, monkeypatch) -> None:
    seen = []

    def run(self: RayExecutor, recipe: Recipe, store: Path) -> Any:
        seen.append((recipe, self.config))
        raise RapWorkerError("enough")

    monkeypatch.setattr("rap.errors._installed", lambda name: True)
    monkeypatch.setattr(RayExecutor, "run", run)
    data = data_in(tmp_path)
    options = ["--executor", "ray", "--workers", "2", "--ray-address", "auto"]
    options += ["--gpus-per-worker", "0.5", "--dtype", "float32", "--max-restarts", "7"]
    done = CliRunner().invoke(
        main, ["score", str(data), "--model", "org/m", "--store", f"{tmp_path}/s", *options]
    )
    assert done.exit_code == 1 and "enough" in done.stderr, done.output
    with pytest.raises(RapWorkerError):
        rap.select(
            *("org/m", None, str(data)),
            store=tmp_path / "s",
            executor="ray",
            workers=2,
            ray_address="auto",
            gpus_per_worker=0.5,
            max_restarts=7,
            loading={"dtype": "float32"},
        )
    (by_shell, shell), (by_call, call) = seen
    assert (
        shell
        == call
        == ExecutorConfig(
            executor="ray",
            workers=2,
            ray_address="auto",
            gpus_per_worker=0.5,
            max_restarts=7,
        )
    )
    assert by_shell.model == by_call.model == "org/m"  # nothing was loaded here
    assert by_shell.loading["dtype"] == by_call.loading["dtype"] == "float32"
    assert by_shell.config.workers == by_call.config.workers == ScoreConfig().workers


@pytest.mark.parametrize(
    "given, words",
    [
        ({"gpus_per_worker": 1}, "executor 'local' takes none, it is for executor 'ray'"),
        ({"executor": "env", "ray_address": "auto"}, "executor 'env' takes none"),
        ({"executor": "ray", "shard": "0/2"}, "it is for executor 'env'"),
        ({"executor": "ray", "steal": False}, "executor 'ray' takes none"),
        ({"executor": "local", "lease": 3.0}, "for executor 'env' and 'ray'"),
        ({"executor": "ray", "workers": 2, "min_workers": 3}, "expected at most workers"),
        ({"executor": "ray", "workers": 0}, "expected None or an integer >= 1"),
        ({"executor": "ray", "gpus_per_worker": 1.5}, "or a whole number of GPUs"),
        ({"executor": "ray", "gpus_per_worker": -1}, "or a whole number of GPUs"),
        ({"executor": "ray", "gpus_per_worker": math.inf}, "gpus_per_worker = inf"),
        ({"executor": "rya"}, "executor = 'rya'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, words) -> None:
    with pytest.raises(RapConfigError, match=words):
        ExecutorConfig(**given)


def test_options_are_the_fields() -> None:
    fields = [f.name for f in dataclasses.fields(ExecutorConfig) if f.name != "workers"]
    assert list(ExecutorOptions.__annotations__) == fields
    assert "workers" in ScoreOptions.__annotations__


def test_no_ray_is_imported_without_the_executor() -> None:
    assert raycluster.__dict__.get("ray") is None


def test_a_cluster_of_our_own_says_its_mode(monkeypatch) -> None:
    """Ray warns where nobody says it; what the user or a running Ray says stays."""
    monkeypatch.delenv(raycluster.AUTH_MODE, raising=False)
    monkeypatch.delitem(sys.modules, "ray", raising=False)

    def mode(wanted: str) -> str | None:
        with raycluster._mode_said(wanted):
            return os.environ.get(raycluster.AUTH_MODE)

    assert mode("local") == "token" and mode("10.0.0.7:6379") is None
    assert raycluster.AUTH_MODE not in os.environ
    monkeypatch.setitem(sys.modules, "ray", raycluster)
    assert mode("local") is None
    monkeypatch.setenv(raycluster.AUTH_MODE, "disabled")
    assert mode("local") == "disabled" and mode("auto") == "disabled"
