"""What it costs that many processes fill one store: each executor against ``local``.

    python -m benchmarks.bench_executors             local, env with 1 and 2 workers
    python -m benchmarks.bench_executors --samples 1024 --workers 1 2 4
    python -m benchmarks.bench_executors --without-model

The demo's model scores its own synthetic images (evidence ``answer``), every process on one
thread. Forwards must be the same and so must the scores: others are an error, not a number.
CPU seconds are user and system of all processes, from the call of `rap.score` to its
return: imports and loading the model are left out, hashing the model and the data in every
worker is not. Processes are forked from one that has loaded the model. Run it on an idle
machine: on a busy one CPU seconds still compare, wall seconds do not.

``--without-model``: what an executor costs a shard, apart from what it costs once. The same
runs on 8 and on 40 shards, whose samples are neither prepared nor scored but given canned
numbers: what is left are the rows, claims, checks, shards and the seal. The slope is what
grows with the work, the rest is start-up; both are set against the seconds that a shard
takes with the model.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARD = 256


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: CPU seconds of all its processes, wall seconds, forwards."""

    cpu: float
    wall: float
    forwards: int


def measure(
    model: Any,
    processor: Any,
    data: Path,
    store: Path,
    workers: int | None,
    shard: int,
    canned: bool = False,
) -> Measured:
    """Score ``data`` into ``store`` with this many workers of executor env, None: local.
    ``canned``: no sample goes through the model."""
    import rap

    settings: dict[str, Any] = {"evidence": "answer", "shard_size": shard}
    settings |= {"store": store, "progress": False}

    def run(rank: int | None) -> None:
        if canned:
            can_scores()
        more = {} if rank is None else {"executor": "env", "shard": f"{rank}/{workers}"}
        rap.score(model, processor, data, **settings, **more)

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    children = []
    for rank in [None] if workers is None else range(workers):
        pid = os.fork()
        if pid == 0:
            try:
                run(rank)
            finally:
                os._exit(0 if (store / "store.json").exists() else 1)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if any(codes):
        raise RuntimeError(f"{store}: a process failed: {codes}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    forwards = sum(rap.Scores.load(store).table["forwards"].to_pylist())
    return Measured(cpu, wall, forwards)


def scores_of(store: Path) -> Any:
    """The score table without its clock readings."""
    import rap
    from rap.scores.table import VOLATILE_COLUMNS

    return rap.Scores.load(store).table.drop_columns(list(VOLATILE_COLUMNS))


def overheads(
    samples: int, workers: list[int], rounds: int, shard: int
) -> dict[str, list[Measured]]:
    """{executor: its runs}, the executors taken in turn."""
    import torch

    from rap.demo import world
    from rap.demo.model import load_demo_model

    torch.set_num_threads(1)
    model, processor = load_demo_model()
    kinds: dict[str, int | None] = {"local": None}
    kinds |= {f"env, {n} worker{'s' * (n > 1)}": n for n in workers}
    found: dict[str, list[Measured]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        data = world.write(world.draw(samples), Path(folder))
        for turn in range(rounds):
            stores = {name: Path(folder) / f"{turn}-{n}" for name, n in kinds.items()}
            for name, n in kinds.items():
                store = stores[name]
                found[name].append(measure(model, processor, data, store, n, shard))
                if not scores_of(store).equals(scores_of(stores["local"])):
                    raise RuntimeError(f"{name}: other scores than local")
    return found


def can_scores() -> None:
    """From now on this process scores without the model, always the same."""
    from rap.scoring import filling
    from rap.scoring.jobs import Job
    from rap.scoring.scorer import Scorer

    same = {"status": "scored", "evidence": "answer", "image_sha256": "0" * 64}
    same |= {"sample_sha256": "1" * 64, "p_answer1": 0.5, "p_answer0": 0.25, "forwards": 2}

    class Canned:
        def __init__(self, samples: Any, *_: object, **__: object) -> None:
            self.samples = samples

        def __call__(self, i: int) -> Job:
            sample = self.samples[i]
            return Job({"id": sample.id, "index": i, **same}, sample)

        def close(self) -> None:
            pass

    def nothing(*_: object) -> None:
        pass

    vars(filling).update(Preparation=Canned, score_batch=nothing)
    Scorer.is_full = lambda self, batch: len(batch) >= 8  # type: ignore[method-assign]


FEW, MANY = 8, 40
"""Shards of the two runs whose difference is a slope."""


@dataclass(frozen=True, slots=True)
class Slope:
    """CPU seconds: of a shard, and of what comes once."""

    shard: float
    once: float


def slopes(workers: list[int], rounds: int, shard: int) -> tuple[dict[str, Slope], float]:
    """({executor: what it costs}, CPU seconds of a shard with the model)."""
    import torch

    from rap.demo import world
    from rap.demo.model import load_demo_model

    torch.set_num_threads(1)
    model, processor = load_demo_model()
    kinds: dict[str, int | None] = {"local": None}
    kinds |= {f"env, {n} worker{'s' * (n > 1)}": n for n in workers}
    found: dict[str, Slope] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = world.write(world.draw(2 * shard), folder / "real")
        lines = real.read_text().splitlines()
        taken: dict[tuple[str, int], list[float]] = {}
        data = {size: folder / f"real/{size}.jsonl" for size in (FEW, MANY)}
        for size, path in data.items():
            path.write_text("".join(map(_row, range(size * shard), lines * size)))
        for turn in range(rounds):
            for kind, n in kinds.items():
                for size, path in data.items():
                    store = folder / f"{turn}-{n}-{size}"
                    made = measure(model, processor, path, store, n, shard, canned=True)
                    taken.setdefault((kind, size), []).append(made.cpu)
        for kind in kinds:
            few, many = (statistics.median(taken[kind, size]) for size in (FEW, MANY))
            slope = (many - few) / (MANY - FEW)
            found[kind] = Slope(slope, few - FEW * slope)
        one = folder / "real/one.jsonl"
        one.write_text("\n".join(lines[:shard]) + "\n")
        costs = [
            measure(model, processor, path, folder / f"model-{k}", None, shard).cpu
            for k, path in enumerate((one, real))
        ]
    return found, costs[1] - costs[0]


def _row(i: int, line: str) -> str:
    """A row with another id."""
    return json.dumps(json.loads(line) | {"id": f"s{i}"}) + "\n"


def slope_table(found: dict[str, Slope], scored: float, shard: int) -> str:
    """Markdown: what is more than ``local``, against ``scored``."""
    lines = [
        f"A shard of {shard} samples takes {scored:.2f} CPU s with the model.",
        "",
        "| executor | ms a shard | more than local | of a scored shard | once, s | more |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = found["local"]
    for name, one in found.items():
        more = one.shard - base.shard
        lines.append(
            f"| {name} | {1000 * one.shard:.1f} | {1000 * more:+.1f} | "
            f"{more / scored:+.2%} | {one.once:.2f} | {one.once - base.once:+.2f} |"
        )
    return "\n".join(lines)


def table(found: dict[str, list[Measured]], samples: int, shard: int) -> str:
    """Markdown: medians, and what is more than ``local`` in CPU seconds and forwards."""
    shards = -(-samples // shard)
    lines = [
        f"{samples} samples in {shards} shards of {shard}",
        "",
        "| executor | CPU s | against local | forwards | against local | wall s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    base = found["local"]
    cpu0, forwards0 = statistics.median(m.cpu for m in base), base[0].forwards
    for name, runs in found.items():
        cpu = statistics.median(m.cpu for m in runs)
        wall = statistics.median(m.wall for m in runs)
        lines.append(
            f"| {name} | {cpu:.1f} | {cpu / cpu0 - 1:+.1%} | {runs[0].forwards} | "
            f"{runs[0].forwards - forwards0:+d} | {wall:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--shard", type=int, default=SHARD)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-model", action="store_true")
    asked = parser.parse_args()
    if asked.without_model:
        costs, scored = slopes(asked.workers, asked.rounds, asked.shard)
        print(slope_table(costs, scored, asked.shard))
        return
    found = overheads(asked.samples, asked.workers, asked.rounds, asked.shard)
    print(table(found, asked.samples, asked.shard))


if __name__ == "__main__":
    main()
