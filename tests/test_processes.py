"""Samples prepared in processes: the bytes that threads give, and what ends a process.

A process imports torch and transformers, some ten seconds here: few tests start one.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from scoring_inputs import make_rows

import rap
from rap.config import ScoreConfig
from rap.errors import RapConfigError
from rap.model.driver import ModelDriver
from rap.samples.sampleset import open_samples
from rap.scoring import processes
from rap.scoring.jobs import Job
from rap.scoring.prepare import partners, prepare_job
from rap.scoring.processes import MAX_DEATHS, AbsentRow, Processes, Rows, rows_of

BAD = 2


def rows(n: int) -> list[dict]:
    """The third with a picture that is cut off."""
    made = make_rows(n)
    if n > BAD:
        made[BAD]["image"] = {"bytes": made[BAD]["image"]["bytes"][:60], "path": None}
    return made


def same(a: Job, b: Job) -> None:
    """Two jobs of one sample: every field, every tensor."""
    assert a.row == b.row and a.sample == b.sample and a.asked == b.asked
    for which in ("image", "blind", "answer"):
        x, y = getattr(a, which), getattr(b, which)
        assert (x is None) == (y is None)
        if x is None:
            continue
        assert x.inputs.keys() == y.inputs.keys() and x.n_prompt == y.n_prompt
        pairs = [(x.inputs[k], y.inputs[k]) for k in x.inputs]
        pairs += [
            (getattr(x, k), getattr(y, k))
            for k in ("response_ids", "image_mask", "special_mask")
        ]
        assert all(s.dtype == t.dtype and torch.equal(s, t) for s, t in pairs)
    shared = a.image is not None and a.answer is not None
    assert not shared or (a.image.shared is a.answer.shared) == (
        b.image.shared is b.answer.shared
    )


# ---- without a process -----------------------------------------------------------------


@pytest.fixture
def there(monkeypatch):
    """`processes._prepare` in this process: what a process does, and nothing around it."""

    def make(driver, config, *, asked=False):
        pickled = processes.pickled_work(driver, config, asked=asked)
        monkeypatch.setattr(processes, "_work", pickle.loads(pickled))

        def prepare(samples, i):
            made = processes._prepare(rows_of(samples, config, i), i)
            return None if made is None else pickle.loads(made)

        return prepare

    return make


@pytest.mark.parametrize("counterfactual", ["drop", "noise", "shuffle"])
@pytest.mark.parametrize("evidence", ["answer", "logits", "rollouts"])
def test_a_job_comes_through_whole(tiny, there, evidence, counterfactual):
    config = ScoreConfig(evidence=evidence, counterfactual=counterfactual)
    driver, samples = ModelDriver(*tiny, config), open_samples(rows(5))
    prepare = there(driver, config)
    for i in range(5):
        made, expected = prepare(samples, i), prepare_job(samples, driver, config, i)
        if counterfactual == "shuffle" and next(partners(samples, config, i)) == BAD:
            # the one that takes the bad one's place was not sent: the parent has it
            assert made is None
            continue
        assert made.sample is None
        if expected.alive:
            made.sample = samples[i]
            same(made, expected)
        else:
            assert made.row == expected.row and made.row["code"] == "image_truncated"


def test_a_job_for_an_engine_comes_through_whole(tiny, there):
    config = ScoreConfig(evidence="rollouts")
    samples = open_samples(rows(2))
    for driver in (ModelDriver(*tiny, config), None):
        made = there(driver, config, asked=True)(samples, 1)
        made.sample = samples[1]
        same(made, prepare_job(samples, driver, config, 1, asked=True))


def test_an_error_is_left_to_the_parent(tiny, there, monkeypatch):
    config = ScoreConfig(evidence="answer")
    samples = open_samples(rows(2))
    prepare = there(ModelDriver(*tiny, config), config)
    assert prepare(samples, 0) is not None
    monkeypatch.setattr(processes, "prepare_job", lambda *a, **k: 1 / 0)
    assert prepare(samples, 0) is None


def test_rows_that_were_not_sent_are_told_from_others():
    held = Rows(5, {2: "two"})
    assert len(held) == 5 and held[2] == "two"
    with pytest.raises(AbsentRow):
        held[3]


def test_the_preparer_goes_without_the_model(tiny):
    driver = ModelDriver(*tiny)
    alone = pickle.loads(pickle.dumps(driver.alone()))
    assert alone.model is None and not hasattr(alone, "lock")
    assert driver.model is tiny[0]
    assert len(pickle.dumps(driver.alone())) < 1 << 20


@pytest.mark.parametrize("fault", ["a lambda", "a class of the script"])
def test_a_processor_that_cannot_be_sent(tiny, fault, caplog, monkeypatch):
    config = ScoreConfig(evidence="answer")
    driver = ModelDriver(tiny[0], tiny[1], config)
    if fault == "a lambda":
        driver.processor = type(tiny[1]).__new__(type(tiny[1]))
        driver.processor.own = lambda text: text
    else:

        class Own:
            pass

        Own.__module__, Own.__qualname__ = "__main__", "Own"
        monkeypatch.setattr(sys.modules["__main__"], "Own", Own, raising=False)
        driver.processor = Own()
    with caplog.at_level(logging.INFO, logger="rap"):
        assert processes.pickled_work(driver, config, asked=False) is None
    assert "prepared by threads: the processor" in caplog.text
    asked = dataclasses.replace(config, prepare="processes")
    with pytest.raises(RapConfigError, match="prepare = 'processes': the processor"):
        processes.pickled_work(driver, asked, asked=False)


def test_processes_are_taken_beside_a_gpu_only(tiny, monkeypatch):
    driver = ModelDriver(*tiny)
    wants = processes._wants_processes
    assert not wants(driver, ScoreConfig())
    assert wants(driver, ScoreConfig(prepare="processes"))
    assert not wants(None, ScoreConfig())
    from rap.model import weights

    monkeypatch.setattr(weights, "input_device", lambda model: torch.device("cuda", 0))
    assert wants(driver, ScoreConfig())
    assert not wants(driver, ScoreConfig(prepare="threads"))


@pytest.mark.parametrize("given", [{"workers": 0}, {"prepare": "threads"}, {}])
def test_no_process_where_none_is_wanted(tiny, given, monkeypatch):
    def never(*args):
        raise AssertionError("a process was started")

    monkeypatch.setattr(processes, "Processes", never)
    config = ScoreConfig(**{"evidence": "answer", "prepare": "processes"} | given)
    samples, driver = open_samples(rows(3)), ModelDriver(*tiny, config)
    made = processes.Preparation(samples, driver, config, asked=False)
    if given:
        same(made(0), prepare_job(samples, driver, config, 0))
    made.close()  # nothing was prepared


def test_the_setting_changes_no_fingerprint():
    assert ScoreConfig(prepare="processes").fingerprint() == ScoreConfig().fingerprint()
    with pytest.raises(RapConfigError, match="prepare"):
        ScoreConfig(prepare="forks")


# ---- with processes --------------------------------------------------------------------


def test_scores_are_those_of_threads(tiny):
    model, processor = tiny
    given = {"evidence": "logits", "counterfactual": "shuffle", "batch_size": 3}
    given |= {"progress": False, "max_bad_fraction": 0.5, "sampling": {"max_new_tokens": 8}}
    tables = [
        rap.score(model, processor, rows(7), **given, prepare=how, allow_degenerate=True)
        for how in ("threads", "processes")
    ]
    columns = [c for c in tables[0].table.column_names if c != "seconds"]
    assert tables[0].table.select(columns).equals(tables[1].table.select(columns))
    bad = [r for r in tables[1].table.to_pylist() if r["status"] != "scored"]
    assert [(r["id"], r["code"]) for r in bad] == [("s2", "image_truncated")]
    assert not multiprocessing.active_children()


@contextmanager
def pool_of(pickled: bytes):
    pool = Processes(pickled, 1)
    try:
        yield pool
    finally:
        pool.close()


@pytest.mark.proof
def test_a_process_that_dies_is_named_and_replaced(tiny, caplog, monkeypatch):
    config = ScoreConfig(evidence="answer")
    driver, samples = ModelDriver(*tiny, config), open_samples(rows(4))
    here: list[int] = []

    def prepare_here(i):
        here.append(i)
        return prepare_job(samples, driver, config, i)

    pickled = processes.pickled_work(driver, config, asked=False)
    with pool_of(pickled) as pool:

        def one(i):
            job = pool.prepare(rows_of(samples, config, i), i, prepare_here)
            same(job, prepare_job(samples, driver, config, i))

        one(0)
        one(BAD)
        assert here == []
        (process,) = multiprocessing.active_children()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with caplog.at_level(logging.WARNING, logger="rap"):
            one(1)
        assert here == [1]
        said = "a process died while sample 's1' was being prepared"
        assert said in caplog.text and "in this process once more" in caplog.text
        one(3)  # in the process that replaced it
        assert here == [1]
        monkeypatch.setattr(pool, "_deaths", MAX_DEATHS - 1)
        (process,) = multiprocessing.active_children()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with caplog.at_level(logging.WARNING, logger="rap"):
            one(0)
            one(1)
        assert here == [1, 0, 1] and "goes on with threads" in caplog.text
    assert not multiprocessing.active_children()


def test_processes_that_do_not_come_up_are_not_tried_again(tiny, caplog):
    config = ScoreConfig(evidence="answer")
    driver, samples = ModelDriver(*tiny, config), open_samples(rows(2))
    with pool_of(b"no pickle") as pool, caplog.at_level(logging.WARNING, logger="rap"):
        for i in (0, 1):
            same(
                pool.prepare(
                    rows_of(samples, config, i),
                    i,
                    lambda k: prepare_job(samples, driver, config, k),
                ),
                prepare_job(samples, driver, config, i),
            )
    assert caplog.text.count("did not come up") == 1


@pytest.mark.parametrize(
    "error", [OSError(11, "Resource temporarily unavailable"), BrokenProcessPool("early")]
)
def test_a_machine_that_gives_no_process(tiny, error, monkeypatch, caplog):
    def submit(*args):
        raise error

    monkeypatch.setattr(processes.ProcessPoolExecutor, "submit", submit)
    config = ScoreConfig(evidence="answer", prepare="processes")
    driver, samples = ModelDriver(*tiny, config), open_samples(rows(2))
    made = processes.Preparation(samples, driver, config, asked=False)
    with caplog.at_level(logging.WARNING, logger="rap"):
        for i in (0, 1):
            same(made(i), prepare_job(samples, driver, config, i))
    made.close()
    assert caplog.text.count("threads") == 1


def test_what_fails_after_a_death_says_so():
    def here(i):
        raise MemoryError("as there")

    with pytest.raises(MemoryError) as error:
        processes._once_more("s7", here, 7)
    assert "'s7'" in error.value.__notes__[0]


SCRIPT = """
    import multiprocessing, signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    sys.path[:0] = [{tests!r}]
    from scoring_inputs import make_rows
    from tiny_models import build
    import rap
    from rap.scoring import filling

    score_batch = filling.score_batch

    def slowly(scorer, jobs):
        score_batch(scorer, jobs)
        pids = [process.pid for process in multiprocessing.active_children()]
        print(*pids, flush=True)
        time.sleep(600)

    filling.score_batch = slowly
    # no guard: nothing imports this script again
    rap.score(*build("qwen2_5_vl"), make_rows(12), evidence="answer", batch_size=2,
              prepare="processes", workers=1, store={store!r}, progress=False)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.proof
def test_no_process_outlives_the_run(number, tmp_path):
    """Ctrl-C, which a terminal sends to all of them, and kill -9 of the parent alone."""
    tests = str(Path(__file__).parent)
    code = textwrap.dedent(SCRIPT.format(tests=tests, store=str(tmp_path / "s")))
    script = tmp_path / "script.py"
    script.write_text(code)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        pids = [int(pid) for pid in run.stdout.readline().split()]
        if number == signal.SIGINT:
            os.killpg(run.pid, number)
        else:
            os.kill(run.pid, number)
        _, said = run.communicate(timeout=1800)
    assert pids, said
    for _ in range(1200):
        if not any(alive(pid) for pid in pids):
            break
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)
    if number == signal.SIGINT:
        assert said.count("Traceback (most recent call last)") == 1, said
        assert said.rstrip().endswith("KeyboardInterrupt")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
