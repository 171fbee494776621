"""What the models say of each world, measured once and kept: the slow half.

One folder a (model, seed): ``truth`` and ``cheap`` are score stores, which go on where a
killed run stopped; ``traces.npz`` holds queries and keys of the last layer. A folder is
named by the hash of the weights and of the world, so another model never meets old scores.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import rap
from rap.config import COUNTERFACTUALS, Sampling
from rap.demo import world
from rap.scores.scores import Scores

from .. import replayed, world_agreement

SAMPLING = Sampling(max_new_tokens=48)
BATCH = 16
SCORING: dict[str, Any] = {
    "sampling": SAMPLING,
    "batch_size": BATCH,
    "shard_size": 48,
    "progress": False,
    "allow_degenerate": True,
    "verify_images": False,
    "max_bad_fraction": 0.2,
}
"""How every store is filled."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    n: int = 200
    """Samples of a world."""
    m: int = 32
    """Completions an arm that count as the truth."""
    m_other: int = 8
    """Completions without the image under blank, noise and shuffle."""
    seeds: tuple[int, ...] = (0, 1, 2)
    n_fresh: int = 120
    """Samples of a world that nothing was set on."""
    fresh: tuple[int, ...] = (10, 11, 12)
    """Seeds of those."""


FULL = Size()
QUICK = Size(n=120)


def resized(size: Size, n: int | None, m: int | None, seeds: list[int] | None) -> Size:
    """``size`` with what is given in place of its own."""
    return dataclasses.replace(
        size,
        n=n or size.n,
        m=m or size.m,
        seeds=tuple(seeds or size.seeds),
        n_fresh=min(n or size.n_fresh, size.n_fresh),
        fresh=size.fresh[: len(seeds or size.fresh)],
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """One world as one model sees it. ``scores``: by name, see `plan`."""

    model: str
    seed: int
    samples: list[world.WorldSample]
    scores: dict[str, Scores]
    traces: list[dict[str, np.ndarray]]


def plan(size: Size) -> dict[str, dict[str, Any]]:
    """{name: settings of ``rap.score``}, the dearest first."""
    every = {
        "truth": {"evidence": "rollouts", "m1": size.m, "m0": size.m},
        "m5": {"evidence": "rollouts", "m1": 5, "m0": 5},
    }
    for kind in COUNTERFACTUALS:
        cheap = {"counterfactual": kind}
        if kind != "drop":
            # The image arm is that of ``truth``: same seeds, same completions.
            arms = {"evidence": "rollouts", "m1": 1, "m0": size.m_other}
            every[f"rollouts-{kind}"] = arms | cheap
        every[f"answer-{kind}"] = {"evidence": "answer"} | cheap
        every[f"logits-{kind}"] = {"evidence": "logits"} | cheap
    return every


def folder(work: Path, weights: Path, size: Size, seed: int) -> Path:
    """Where a (model, seed) is kept: named by what it depends on."""
    manifest = (weights / "manifest.json").read_bytes()
    drawn = repr([(s.id, s.question, s.answer) for s in world.draw(size.n, seed=seed)])
    digest = hashlib.sha256(manifest + drawn.encode()).hexdigest()[:12]
    return work / f"{weights.name}-{seed}-n{size.n}-m{size.m}-{size.m_other}-{digest}"


def collect(
    work: Path,
    weights: Path,
    size: Size,
    seed: int,
    load: Callable[[Path], tuple[Any, Any]],
    echo: Callable[[str], Any] = print,
) -> Measured:
    """Measure what is missing of one (model, seed); then read all of it.

    Single stores are shards of 48 samples: what a kill loses is under a minute.
    """
    where = folder(work, weights, size, seed)
    where.mkdir(parents=True, exist_ok=True)
    samples = world.draw(size.n, seed=seed, split="selection")
    rows = [{k: v for k, v in r.items() if k != "cause"} for r in world.rows(samples)]
    ready: list[Any] = []

    def model() -> tuple[Any, Any]:
        if not ready:
            ready.extend(load(weights))
        return ready[0], ready[1]

    scores = {}
    for name, settings in plan(size).items():
        done = where / f"{name}.json"
        if not done.exists():
            made = rap.score(
                *model(),
                rows,
                store=where / name,
                **SCORING,
                **settings,
            )
            done.write_text(json.dumps(made.meta["cost"]))
            echo(f"{where.name} {name}: {made.meta['cost']['seconds']:.0f} s")
        scores[name] = Scores.load(where / name)
        meta = dict(scores[name].meta) | {"cost": json.loads(done.read_text())}
        scores[name] = Scores(scores[name].table, meta, None, scores[name].rollouts)
    scores["reworded"] = _reworded(where / "reworded", samples, size, model, echo)
    path = where / "traces.npz"
    if not path.exists():
        keep_traces(path, *model(), rows, scores["truth"])
    return Measured(weights.name, seed, samples, scores, read_traces(path))


def _reworded(
    store: Path, samples: list[world.WorldSample], size: Size, model: Any, echo: Any
) -> Scores:
    """Completions of the samples with a loud word, that word changed."""
    done = store.with_suffix(".json")
    changed = world_agreement.reworded(samples)
    if not done.exists():
        rows = [{k: v for k, v in r.items() if k != "cause"} for r in world.rows(changed)]
        arms = {"evidence": "rollouts", "m1": size.m_other, "m0": 1}
        made = rap.score(*model(), rows, store=store, **SCORING, **arms)
        done.write_text(json.dumps(made.meta["cost"]))
        echo(f"{store.parent.name} reworded: {made.meta['cost']['seconds']:.0f} s")
    return Scores.load(store)


def first_completions(truth: Scores) -> dict[str, list[int]]:
    """Tokens of completion 0 with the image, by sample."""
    names = ["id", "arm", "number", "token_ids"]
    return {
        r["id"]: r["token_ids"]
        for r in truth.rollouts.select(names).to_pylist()
        if r["arm"] == "image" and r["number"] == 0
    }


def keep_traces(path: Path, model: Any, processor: Any, rows: Any, truth: Scores) -> None:
    """Queries and keys over completion 0 of every sample, whether it is right or not.

    ``rap.score`` measures psi only where a sample may still be kept; to find captured
    samples it must be known of all.
    """
    from rap.config import ScoreConfig
    from rap.model.driver import ModelDriver
    from rap.samples.sampleset import open_samples
    from rap.scoring.prepare import prepare_job

    config = ScoreConfig(evidence="rollouts", sampling=SAMPLING)
    driver, ids = ModelDriver(model, processor, config), first_completions(truth)
    driver.check()
    samples = open_samples(rows)
    kept: dict[str, np.ndarray] = {}
    for start in range(0, len(samples), BATCH):
        part = range(start, min(start + BATCH, len(samples)))
        prepared = []
        for i in part:
            job = prepare_job(samples, driver, config, i)
            prepared.append(driver.with_response(job.image, ids[job.row["id"]]))
        for i, trace in zip(part, driver.trace(prepared), strict=True):
            kept[f"q{i}"], kept[f"k{i}"] = trace.q.numpy(), trace.k.numpy()
            kept[f"special{i}"] = trace.special_mask.numpy()
            kept[f"meta{i}"] = np.array([trace.n_prompt, trace.scaling])
    np.savez(path, **kept)


def read_traces(path: Path) -> list[dict[str, np.ndarray]]:
    """What `keep_traces` wrote: {"q", "k", "special", "meta"} a sample."""
    with np.load(path) as held:
        n = sum(name.startswith("meta") for name in held.files)
        names = ("q", "k", "special", "meta")
        return [{name: held[f"{name}{i}"] for name in names} for i in range(n)]


def collect_all(
    work: Path,
    models: list[Path],
    size: Size,
    load: Callable[[Path], tuple[Any, Any]],
    echo: Callable[[str], Any] = print,
) -> Iterator[Measured]:
    """Every (model, seed), one after the other."""
    for weights in models:
        for seed in size.seeds:
            yield collect(work, weights, size, seed, load, echo)


# ---- confirmation ---------------------------------------------------------------

FRESH_PLAN: dict[str, dict[str, Any]] = {
    "rollouts M=5": {"evidence": "rollouts", "m1": 5, "m0": 5},
    "logits": {"evidence": "logits"},
    "answer": {"evidence": "answer"},
    "cascade": {"evidence": "cascade"},
}


@dataclass(frozen=True, slots=True)
class Fresh:
    """A world of split "test", which nothing was set on, scored with the defaults."""

    model: str
    seed: int
    samples: list[world.WorldSample]
    scores: dict[str, Scores]


def confirm_all(
    work: Path,
    models: list[Path],
    size: Size,
    load: Callable[[Path], tuple[Any, Any]],
) -> Iterator[Fresh]:
    """Every (model, fresh seed); what is measured already is read."""
    for weights in models:
        for seed in size.fresh:
            yield _confirm(work, weights, size.n_fresh, seed, load)


def _confirm(work: Path, weights: Path, n: int, seed: int, load: Any) -> Fresh:
    samples = world.draw(n, seed=seed, split="test")
    rows = [{k: v for k, v in r.items() if k != "cause"} for r in world.rows(samples)]
    manifest = (weights / "manifest.json").read_bytes()
    drawn = repr([(s.id, s.question, s.answer) for s in samples])
    digest = hashlib.sha256(manifest + drawn.encode()).hexdigest()[:12]
    where = work / f"confirm-{weights.name}-{seed}-n{n}-{digest}"
    where.mkdir(parents=True, exist_ok=True)
    scores = {}
    for name, settings in FRESH_PLAN.items():
        if name == "cascade":  # of what is measured: benchmarks.replayed
            scores[name] = replayed.cascade(scores["answer"], scores["rollouts M=5"], rows)
            continue
        store, done = where / name, where / f"{name}.done"
        if not done.exists():
            rap.score(*load(weights), rows, store=store, **SCORING, **settings)
            done.touch()
        scores[name] = Scores.load(store)
    return Fresh(weights.name, seed, samples, scores)
