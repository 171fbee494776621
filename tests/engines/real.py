"""Scoring through real servers, vLLM on the CPU and ``transformers serve``.

``make test-engines`` runs this (pytest does not collect it by itself) and writes what was
found to ``RESULTS.md`` beside it. The model served is the demo's, with a
``generation_config.json`` that a server must not follow (``spoiled_model``).
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import signal
import statistics
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from engines.servers import Real, spoiled_model, transformers_serve, vllm

import rap
from rap.config import Sampling, ScoreConfig
from rap.demo.model import load_demo_model
from rap.demo.world import draw, to_dataset
from rap.engines import EngineConfig, make_engine
from rap.errors import RapConfigError, RapModelError
from rap.model.driver import ModelDriver
from rap.samples.sampleset import open_samples
from rap.scoring.prepare import prepare_job
from rap.scoring.scorer import Scorer

ENGINES = Path(os.environ["RAP_ENGINES"])
HERE = Path(__file__).resolve().parent
TOKENS = {"max_new_tokens": 64}
FOUND: list[tuple[str, str]] = []


def note(what: str, result: str) -> None:
    """A row of the results."""
    FOUND.append((what, result))
    print(f"{what}: {result}", flush=True)


# ---------------------------------------------------------------- servers and data


@pytest.fixture(scope="module", autouse=True)
def results():
    """Written when the tests ran. A run of some of them replaces their rows."""
    yield
    path = Path(os.environ.get("RAP_ENGINE_RESULTS", HERE / "RESULTS.md"))
    rows = dict(_rows(path)) | dict(FOUND)
    text = (
        f"`make test-engines`, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores of "
        f"{platform.machine()} shared with other work, Python "
        f"{platform.python_version()}; client: torch {torch.__version__}, transformers "
        f"{importlib.metadata.version('transformers')}. Written by "
        "`tests/engines/real.py`; a check that fails writes no row. The "
        "model is the demo's (1.3 M parameters, float32), "
        "served with a `generation_config.json` of `top_k=1, temperature=0.01`."
    )
    table = [f"| {what} | {result} |" for what, result in rows.items()]
    lines = ["# Scoring through real servers", "", *textwrap.wrap(text, 98), ""]
    path.write_text("\n".join([*lines, "| what | found |", "|---|---|", *table, ""]))


def _rows(path: Path) -> list[tuple[str, str]]:
    if not path.exists():
        return []
    lines = [x for x in path.read_text().splitlines() if x.startswith("| ")][1:]
    return [tuple(x.strip("| ").split(" | ", 1)) for x in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def weights(folder) -> Path:
    return spoiled_model(folder / "model")


@pytest.fixture(scope="module")
def pair(folder, weights):
    """Two vLLM servers of one model."""
    python = ENGINES / "vllm" / "bin" / "python"
    one = vllm(python, weights, folder / "one.log")
    two = vllm(python, weights, folder / "two.log")
    try:
        one.start()
        seconds = one.wait()
        two.start()
        two.wait()
        note("vLLM on the CPU", f"up in {seconds:.0f} s")
        yield one, two
    finally:
        one.kill()
        two.kill()


@pytest.fixture(scope="module")
def demo():
    return load_demo_model()


def data(n: int):
    return to_dataset(draw(n, seed=11))


def score(demo, server: Real | list[Real], n: int = 24, **given):
    servers = server if isinstance(server, list) else [server]
    options = {
        "evidence": "rollouts",
        "engine": "openai",
        "base_url": [s.url for s in servers],
        "concurrency": 16,
        "sampling": TOKENS,
        "progress": False,
    }
    return rap.score(*demo, data(n), **options | given)


def completions(scores) -> list[tuple]:
    names = ("index", "arm", "number", "text", "seed")
    return [tuple(r[n] for n in names) for r in scores.rollouts.to_pylist()]


def require_whole(scores, n: int, m: int = 5) -> None:
    """Every completion is there, and once; none was counted twice."""
    seen = Counter(c[:3] for c in completions(scores))
    assert len(seen) == 2 * n * m and set(seen.values()) == {1}
    table = scores.table.to_pylist()
    assert [(r["status"], r["m1"], r["m0"]) for r in table] == [("scored", m, m)] * n
    assert [r["n_drawn"] for r in table] == [2 * m] * n


# ---------------------------------------------------------------- vLLM


def test_probe(pair, demo, capsys):
    scores = score(demo, pair[0], 8)
    line = next(
        x for x in capsys.readouterr().err.splitlines() if x.startswith("engine openai")
    )
    for words in (
        "vllm 0.32.0",
        "1024 tokens of context",
        "has n, token ids, logprobs, prompt logprobs",
        "seeds each",
        "prompt tokens as here",
    ):
        assert words in line
    note("probe of vLLM", f"`{line}`")
    note("provenance in the fingerprint", f"`{scores.meta['fingerprint']['engine']}`")
    require_whole(scores, 8)


def test_seeds_and_n(pair, demo):
    """A request for five is five requests with seeds in a row, and repeats itself."""
    config = ScoreConfig(evidence="rollouts", sampling=TOKENS)
    driver = ModelDriver(*demo, config)
    settings = EngineConfig(engine="openai", base_url=pair[0].url, concurrency=16)
    engine = make_engine(settings, driver)
    try:
        engine.check(config.sampling)
        samples = open_samples(data(12))
        jobs = [prepare_job(samples, driver, config, i, asked=True) for i in range(12)]
        scorer = Scorer(driver, config, None, False, engine, local=False)
        five = scorer.generate(jobs, "image", range(5))
        engine._servers.all[0].abilities = _without_n(engine._servers.all[0].abilities)
        one_by_one = scorer.generate(jobs, "image", range(5))
        distinct = [len({c.text for c in five[id(job)]}) for job in jobs]
    finally:
        engine.close()
    same = sum(
        a.token_ids == b.token_ids
        for job in jobs
        for a, b in zip(five[id(job)], one_by_one[id(job)], strict=True)
        if a.seed == b.seed
    )
    shared = sum(
        a.seed == b.seed
        for job in jobs
        for a, b in zip(five[id(job)], one_by_one[id(job)], strict=True)
    )
    assert shared >= 12 and same == shared
    assert max(distinct) > 1
    note("n = 5 against single requests", f"{same} of {shared} with one seed equal")


def _without_n(abilities):
    import dataclasses

    return dataclasses.replace(abilities, n=False)


def test_a_run_repeats_itself(pair, demo):
    first = score(demo, pair[0], 24)
    again = score(demo, pair[0], 24, concurrency=1)
    same = sum(a == b for a, b in zip(completions(first), completions(again), strict=True))
    assert same == 240  # float32 on a CPU; a GPU needs VLLM_BATCH_INVARIANT
    note("the same run again, 16 in flight and 1", f"{same} of 240 completions equal")


def test_pass_rates_and_likelihoods(pair, demo):
    """200 samples, 5 + 5 completions: two-sample tests of server and local driver."""
    started = time.monotonic()
    theirs = score(demo, pair[0], 200)
    middle = time.monotonic()
    ours = rap.score(*demo, data(200), evidence="rollouts", sampling=TOKENS, progress=False)
    ended = time.monotonic()
    require_whole(theirs, 200)
    note(
        "seconds for 200 samples of 5 + 5, server and local driver",
        f"{middle - started:.0f} and {ended - middle:.0f} (not a benchmark: shared cores)",
    )
    for arm, name in (("1", "with the image"), ("0", "without it")):
        a, b = (t.table[f"c{arm}"].to_numpy() / 5 for t in (theirs, ours))
        n, rates = 200 * 5, (a.mean(), b.mean())
        pooled = sum(rates) / 2
        z = (rates[0] - rates[1]) / math.sqrt(2 * pooled * (1 - pooled) / n)
        paired = (a - b).mean() / (statistics.stdev(a - b) / math.sqrt(200))
        p, q = (math.erfc(abs(x) / math.sqrt(2)) for x in (z, paired))
        assert p > 0.01 and q > 0.01
        note(
            f"pass rate {name}, 200 samples, M = 5",
            f"server {rates[0]:.3f}, local {rates[1]:.3f}; two proportions p = {p:.2f}, "
            f"paired by sample p = {q:.2f}",
        )


def test_likelihoods(pair, demo):
    """log p of sampled completions, the server's and our own forward's."""
    config = ScoreConfig(evidence="rollouts", sampling=TOKENS)
    driver = ModelDriver(*demo, config)
    settings = EngineConfig(engine="openai", base_url=pair[0].url, concurrency=16)
    engine = make_engine(settings, driver)
    samples = open_samples(data(100))
    worst, total = 0.0, 0
    try:
        engine.check(Sampling(**TOKENS))
        jobs = [prepare_job(samples, driver, config, i, asked=True) for i in range(100)]
        scorer = Scorer(driver, config, None, True, engine, local=False)
        for arm, which in (("image", "image"), ("counterfactual", "blind")):
            drawn = scorer.generate(jobs, arm, range(2))
            for job in jobs:
                for completion in drawn[id(job)]:
                    ids = [*completion.token_ids]
                    if completion.finish_reason == "stop":
                        ids.append(driver.tokenizer.eos_token_id)
                    difference = abs(
                        completion.logp - _logp(driver, getattr(job, which), ids)
                    )
                    worst, total = max(worst, difference / len(ids)), total + 1
    finally:
        engine.close()
    assert total == 400 and worst <= 1e-5
    note(
        "log-likelihood of 400 sampled completions, server against our forward",
        f"largest difference {worst:.1e} nats a token",
    )


def _logp(driver: ModelDriver, prompt, ids: list[int]) -> float:
    (trace,) = driver.trace([driver.with_response(prompt, ids)], attention=False)
    with torch.inference_mode():
        logits = torch.log_softmax(driver.head.logits(trace.hidden).double(), dim=-1)
    return logits.gather(1, torch.tensor(ids)[:, None]).sum().item()


def test_psi_of_the_server_s_completions(pair, demo):
    scores = score(demo, pair[0], 24)
    right = [r for r in scores.table.to_pylist() if 0 < r["c1"] and r["c1"] > r["c0"]]
    assert right and all(r["log_psi"] is not None for r in right)
    note("psi by a local forward over returned token ids", f"{len(right)} of {len(right)}")


def test_evidence_logits(pair, demo):
    given = {"evidence": "logits", "sampling": TOKENS}
    theirs = score(demo, pair[0], 40, **given)
    ours = rap.score(*demo, data(40), **given, progress=False)
    names = ("js", "n_response", "generated_tokens")
    a, b = (t.table.select(names).to_pydict() for t in (theirs, ours))
    # Our own completion leaves the image's features, of a batch of another shape: D moves
    # by a step of a stored score, as between two batch sizes of ours.
    assert a["n_response"] == b["n_response"]
    assert a["generated_tokens"] == b["generated_tokens"]
    assert a["js"] == pytest.approx(b["js"], rel=4.9e-4, abs=1e-7)
    same = sum(x == y for x, y in zip(a["js"], b["js"], strict=True))
    note(
        "evidence logits, greedy completion of the server",
        f"40 of 40 D as ours within a stored step, {same} of them equal",
    )


def test_wrong_model(pair, demo):
    with pytest.raises(RapConfigError, match="serves no model 'other'") as error:
        score(demo, pair[0], 4, served_model="other")
    note("a model that is not served", f"{error.value}")


def test_too_long_prompt(pair, demo):
    rows = [dict(row) for row in data(24)]
    rows[3]["question"] += " and the square" * 400
    for model, which in ((demo, "known here"), ((None, None), "told by the server")):
        options = {"evidence": "rollouts", "engine": "openai", "base_url": pair[0].url}
        scores = rap.score(*model, rows, **options, sampling=TOKENS, progress=False)
        bad = [r for r in scores.table.to_pylist() if r["status"] != "scored"]
        assert [(r["index"], r["code"]) for r in bad] == [(3, "prompt_too_long")]
        note(f"a prompt that is too long, {which}", f"quarantined: {bad[0]['message']}")


def test_pixel_limits(pair, demo):
    """The probe's large image tells that a server scales images otherwise."""
    processor = demo[1].image_processor
    before = processor.size
    smaller = {"shortest_edge": before.shortest_edge, "longest_edge": 112 * 112}
    processor.size = type(before)(**smaller)
    try:
        with pytest.raises(RapModelError, match="pixel limits") as error:
            score(demo, pair[0], 4)
    finally:
        processor.size = before
    note("other pixel limits here than there", f"refused: {error.value}")


def test_no_server_alone_needs_a_model(pair):
    scores = score((None, None), pair[0], 12)
    require_whole(scores, 12)
    assert scores.table["log_psi"].null_count == 12
    note("without a local model", "scored; ACE skipped, and said so")


# ---------------------------------------------------------------- slow, killed, two of them


def during(work, disturb):
    """What ``work`` returns, while ``disturb`` happens to its servers."""
    done: list = []

    def run():
        try:
            done.append(work())
        except BaseException as error:  # handed to the test
            done.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        disturb()
    finally:
        thread.join()
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


def halfway(server: Real, requests: int = 60) -> None:
    """Until some requests of a run were answered, those of the probe among them."""
    before = server.log.read_text(errors="replace").count("/v1/chat/completions")
    for _ in range(6000):
        text = server.log.read_text(errors="replace")
        if text.count("/v1/chat/completions") > before + requests:
            return
        time.sleep(0.02)
    raise AssertionError("no request came through")


def test_a_slow_server(pair, demo, tmp_path):
    """Stopped for 20 seconds in the middle: time-outs, and nothing is lost."""

    def stand_still():
        halfway(pair[0])
        pair[0].signal(signal.SIGSTOP)
        time.sleep(20)
        pair[0].signal(signal.SIGCONT)

    calm = score(demo, pair[0], 48)
    given = {"timeout": 6.0, "store": tmp_path / "s"}
    scores = during(lambda: score(demo, pair[0], 48, **given), stand_still)
    require_whole(scores, 48)
    assert completions(scores) == completions(calm)
    note("a server that stands still for 20 s, timeout 6 s", "480 of 480 completions, once")


def test_two_servers_and_one_dies(pair, demo, tmp_path):
    def kill():
        halfway(pair[1], 30)
        pair[1].kill()

    calm = score(demo, pair[0], 48)
    scores = during(lambda: score(demo, [*pair], 48, store=tmp_path / "s"), kill)
    require_whole(scores, 48)
    assert completions(scores) == completions(calm)
    note("two servers, one killed in the run", "480 of 480 completions, once, as calmly")


def test_killed_and_restarted(pair, demo, tmp_path):
    seconds = []

    def kill_and_restart():
        halfway(pair[0])
        pair[0].kill()
        pair[0].start()
        seconds.append(pair[0].wait())

    calm = score(demo, pair[0], 48)
    scores = during(
        lambda: score(demo, pair[0], 48, store=tmp_path / "s"), kill_and_restart
    )
    require_whole(scores, 48)
    assert completions(scores) == completions(calm)
    note(
        "kill -9 in the run, restarted on its port",
        f"back after {seconds[0]:.0f} s; 480 of 480 completions, once, as calmly",
    )


def test_503(folder, weights, pair, demo):
    """A server with a queue of four, asked 32 at a time for five completions each."""
    calm = score(demo, pair[0], 24)
    python = ENGINES / "vllm" / "bin" / "python"
    short = ("--max-num-queued-reqs", "4", "--max-num-seqs", "2")
    server = vllm(python, weights, folder / "short.log", *short)
    try:
        server.start()
        server.wait()
        scores = score(demo, server, 24, concurrency=32)
    finally:
        server.kill()
    refused = server.log.read_text(errors="replace").count(" 503 ")
    require_whole(scores, 24)
    same = sum(a == b for a, b in zip(completions(scores), completions(calm), strict=True))
    assert refused > 0 and same == 240
    note(
        "a queue of four, 32 requests in flight",
        f"{refused} answers 503; 240 of 240, once",
    )


# ---------------------------------------------------------------- transformers serve


def test_transformers_serve(folder, weights, demo, capsys):
    server = transformers_serve(ENGINES / "transformers-serve", weights, folder / "hf.log")
    try:
        server.start()
        seconds = server.wait()
        given = {"served_model": str(weights), "concurrency": 4, "m1": 3, "m0": 3}
        scores = score(demo, server, 12, **given)
    finally:
        server.kill()
    require_whole(scores, 12, 3)
    line = next(
        x for x in capsys.readouterr().err.splitlines() if x.startswith("engine openai")
    )
    note("transformers serve", f"up in {seconds:.0f} s; `{line}`")
    posts = server.log.read_text(errors="replace").count("POST /v1/chat/completions")
    note("transformers serve: top-up", f"72 completions in single requests ({posts} posts)")
    assert scores.table["log_psi"].null_count == 12
