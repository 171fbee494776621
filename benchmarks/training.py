"""The paper's table in miniature: a small model trained on what each rule selects.

    python -m benchmarks.training --quick            # under 15 minutes, two cores
    python -m benchmarks.training --minutes 9        # the whole table, nine minutes of it
    python -m benchmarks.training --report           # what there is, as a table

The demo's model is trained with TRL's GRPO (and RLOO) from the same start, for the same
number of steps, on all data of a drawn world and on what each arm selects of it
(benchmarks/training_arms.py). Every few steps it answers held-out questions of layouts that
neither its own training nor the selection drew, with the picture and without it.

A piece of work is one training run or one scoring of the pool; each is a process of its
own with one thread, under ten minutes. What is done lies in --work and is not done again:
call it again until it says that nothing is left. Seconds are the process's own (CPU time of
one thread), so that what else runs on the machine does not count. ``--report`` writes
benchmarks/results/training.{parquet,md,png}, with --model or --scorer training_transfer.*.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by its path, too

from benchmarks.training_arms import ARMS
from benchmarks.training_plan import (
    PLAN,
    QUICK,
    RUNS,
    SCORINGS,
    TRANSFER,
    Plan,
    Run,
    finished,
    read_plan,
    runs,
    scorings,
)
from benchmarks.training_report import write_report

RESULTS = Path(__file__).parent / "results"
VERDICT = Path(__file__).with_name("training_first_verdict.md")
"""What the whole table says, in words; goes into the report."""


# ---------------------------------------------------------------- one piece of work


def pool_of(plan: Plan, first: int | None = None) -> Any:
    """The samples that are selected from, or the ``first`` of them."""
    from rap.demo import world
    from rap.samples.sampleset import open_samples

    drawn = world.draw(plan.pool, seed=plan.pool_seed)
    return open_samples(world.to_dataset(drawn[:first]))


def load(folder: str) -> tuple[Any, Any]:
    """(model, processor); "" is the demo's model."""
    from rap.demo.model import load_demo_model

    return load_demo_model(Path(folder) if folder else None)


def score_pool(plan: Plan, work: Path, piece: str) -> Any:
    """The pool's scores by one evidence, with attention; goes on where it was."""
    from rap import score
    from rap.config import Sampling

    model, processor = load(plan.scorer or plan.model)
    name = SCORINGS[piece]
    settings: dict[str, Any] = {"evidence": "logits"}
    if name != "logits":
        part = plan.part_completions
        m1, m0 = part if name == "part" else (plan.completions,) * 2
        settings = {"evidence": "rollouts", "m1": m1, "m0": m0}
        settings["sampling"] = Sampling(max_new_tokens=plan.tokens)
    settings |= {"store": work / piece, "batch_size": 16, "shard_size": 64}
    pool = pool_of(plan, plan.part if name == "part" else None)
    begin = time.process_time()
    try:
        return score(model, processor, pool, progress=False, **settings)
    finally:
        spend(work / f"{piece}.seconds", time.process_time() - begin)


def spend(path: Path, seconds: float) -> None:
    """Add to what earlier attempts took."""
    path.write_text(repr(seconds + (float(path.read_text()) if path.exists() else 0.0)))


class Exam:
    """Held-out questions, asked at temperature 1 with fixed seeds. ``seed``: of the
    questions; two exams of different seeds share none that is drawn."""

    SEED = 2_000_003

    def __init__(
        self,
        plan: Plan,
        processor: Any,
        *,
        seed: int = SEED,
        questions: int | None = None,
        mixed: int | None = None,
        arms: Sequence[str] = ("sighted", "blind"),
    ) -> None:
        from benchmarks.demo_model import measure
        from rap.demo import world

        self.processor, self.tokens, self.arms = processor, plan.tokens, arms
        asked = [
            (f"image/{family}", q.text, q.scene, q.answer)
            for family in world.IMAGE_FAMILIES
            for q in measure.held_out(family, questions or plan.questions, seed)
        ]
        asked += [
            (f"mixed/{s.cause}", s.question, s.scene, s.true_answer)
            for s in world.draw(mixed or plan.mixed, seed=seed, split="test")
        ]
        self.asked = asked

    def __call__(self, model: Any, step: int = 0) -> dict[str, Any]:
        """{"sighted" | "blind": {group: [right, asked]}, "answers": {arm: "0110..."}}, a
        digit a question, in the order of ``asked``; the model's mode is kept."""
        import torch

        training = model.training
        model.eval()
        found: dict[str, Any] = {"answers": {}}
        with torch.random.fork_rng():
            for arm in self.arms:
                right = self._ask(model, blind=arm == "blind")
                found["answers"][arm] = "".join(map(str, right))
                found[arm] = self._by_group(right)
        model.train(training)
        return found

    def _by_group(self, right: Sequence[int]) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for (group, _, _, _), one in zip(self.asked, right, strict=True):
            counts = groups.setdefault(group, [0, 0])
            counts[0] += one
            counts[1] += 1
        return groups

    def _ask(self, model: Any, *, blind: bool) -> list[int]:
        """1 or 0 a question."""
        from benchmarks.demo_model import measure

        found: list[int] = []
        side = self.processor.tokenizer.padding_side
        for start in range(0, len(self.asked), 100):
            part = self.asked[start : start + 100]
            texts = measure.complete(
                model,
                self.processor,
                [text for _, text, _, _ in part],
                [None if blind else scene for _, _, scene, _ in part],
                seed=start,
                tokens=self.tokens,
            )
            found += [
                int(measure.answer_in(text) == answer)
                for (_, _, _, answer), text in zip(part, texts, strict=True)
            ]
        self.processor.tokenizer.padding_side = side
        return found


def correct(completions: Any, solution: Any, **columns: Any) -> list[float]:
    """Reward: the number that a completion ends with is the reference answer."""
    from benchmarks.demo_model.measure import answer_in
    from rap.trl.rewards import completion_text

    texts = [completion_text(c) for c in completions]
    return [float(str(answer_in(t)) == s) for t, s in zip(texts, solution, strict=True)]


def train(plan: Plan, run: Run, work: Path) -> dict[str, Any]:
    """One run; returns what --report reads."""
    import rap
    import rap.trl

    samples, arm = pool_of(plan), ARMS[run.arm]
    rows, reselect = None, rap.trl.Reselect(refill=arm.refill)
    if arm.pick is not None:
        scores = dataclasses.replace(
            rap.Scores.load(work / f"scores-{arm.evidence}"),
            dataset=pool_of(plan, plan.part) if arm.evidence == "part" else samples,
        )
        rows = sorted(int(i) for i in arm.pick(scores, run.budget, run.seed))
        if arm.reselect:
            reselect = rap.trl.Reselect(
                rap.choose(scores, budget=run.budget),
                mode="rewards",
                every=plan.reselect_every,
            )
    model, processor = load(plan.model)
    exam = Exam(plan, processor)
    return train_on(
        *(plan, run, samples, rows, model, processor, exam, work),
        reselect=reselect,
        whole=arm.reselect,
    )


def train_on(
    plan: Plan,
    run: Run,
    samples: Any,
    rows: Sequence[int] | None,
    model: Any,
    processor: Any,
    exam: Any,
    work: Path,
    *,
    reselect: Any,
    whole: bool = False,
) -> dict[str, Any]:
    """Train on these rows of ``samples`` (None: all). ``exam``: (model, step) -> what a
    measurement holds. ``whole``: the trainer is given all rows and re-selects."""
    import torch
    import transformers

    import rap.trl

    torch.set_num_threads(1)
    transformers.set_seed(run.seed)
    data = rap.trl.prepare(samples)
    trainer = getattr(rap.trl, f"{run.algorithm}Trainer")(
        model,
        correct,
        args=_arguments(plan, run, work),
        train_dataset=data if rows is None or whole else data.select(rows),
        processing_class=processor,
        reselect=reselect,
    )
    clock = _Clock(plan, trainer, exam)
    trainer.add_callback(clock.callback())
    clock.measure(0)
    trainer.train()
    everything = range(len(samples)) if rows is None else rows
    return {
        **dataclasses.asdict(run),
        "prompts": len(everything),
        "causes": _causes(samples, everything),
        "points": clock.points,
        "reselections": trainer.reselections,
        "refilled": trainer.refilled,
        "machine": f"torch {torch.__version__}, {torch.get_num_threads()} thread",
    }


def _arguments(plan: Plan, run: Run, work: Path) -> Any:
    import trl

    return getattr(trl, f"{run.algorithm}Config")(
        output_dir=str(work / "trainer" / run.key),
        per_device_train_batch_size=plan.prompts * plan.generations,
        num_generations=plan.generations,
        max_completion_length=plan.tokens,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="constant",
        max_steps=plan.steps,
        beta=0.0,
        seed=run.seed,
        save_strategy="no",
        logging_steps=10,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )


def _causes(samples: Any, rows: Sequence[int]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for i in rows:
        cause = str(samples.row(i)["cause"])
        counts[cause] = counts.get(cause, 0) + 1
    return dict(sorted(counts.items()))


class _Clock:
    """Measures every few steps; its own time is not the training's."""

    def __init__(self, plan: Plan, trainer: Any, exam: Exam) -> None:
        self.plan, self.trainer, self.exam = plan, trainer, exam
        self.points: list[dict[str, Any]] = []
        self.begin, self.paused = time.process_time(), 0.0

    def measure(self, step: int) -> None:
        start = time.process_time()
        seconds = start - self.begin - self.paused if step else 0.0
        plan, refilled = self.plan, self.trainer.refilled["groups"]
        groups = refilled if self.trainer.reselect.refill else step * plan.prompts
        about = {"step": step, "seconds": seconds, "completions": groups * plan.generations}
        self.points.append(about | self.exam(self.trainer.model, step))
        self.paused += time.process_time() - start
        if not step:
            self.begin, self.paused = time.process_time(), 0.0

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock = self

        class Callback(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step % clock.plan.every == 0:
                    clock.measure(state.global_step)

        return Callback()


def do(plan: Plan, key: str, work: Path) -> None:
    """One piece of work, in this process."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if key in SCORINGS:
        cost = cost_of(score_pool(plan, work, key), work / key)
        cost["seconds"] = float((work / f"{key}.seconds").read_text())
        write_json(work / f"{key}.json", cost)
        return
    (run,) = [r for r in runs(plan) if r.key == key]
    begin = time.perf_counter()
    found = train(plan, run, work)
    write_json(work / RUNS / f"{key}.json", found | {"wall": time.perf_counter() - begin})


def cost_of(scores: Any, store: Path) -> dict[str, Any]:
    """The ledger of the scoring, and the image arm's share of the tokens drawn."""
    cost = {k: v for k, v in scores.meta["cost"].items() if k != "train_all"}
    if cost["rollouts"]:
        cost["image_share"] = _image_share(store)
    return cost


def _image_share(store: Path) -> float:
    from rap.scores.store import ScoreStore

    with ScoreStore.load(store) as opened:
        rollouts = opened.read_rollouts()
    tokens = {"image": 0, "counterfactual": 0}
    for arm, ids in zip(
        rollouts["arm"].to_pylist(), rollouts["token_ids"].to_pylist(), strict=True
    ):
        tokens[arm] += len(ids)
    return tokens["image"] / sum(tokens.values())


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


# ---------------------------------------------------------------- all of them


def pending(plan: Plan, work: Path) -> list[str]:
    """Pieces that are not done; the scores come first."""
    unscored = [name for name in scorings(plan) if not (work / f"{name}.json").exists()]
    if unscored:
        return unscored
    return [r.key for r in runs(plan) if not (work / RUNS / f"{r.key}.json").exists()]


def start_of(plan: Plan) -> str:
    """Hash of the weights that every run starts from, and of those that score."""
    from rap.demo.model import MANIFEST, WEIGHTS

    folders = [Path(name or WEIGHTS) for name in (plan.model, plan.scorer or plan.model)]
    manifests = b"".join((folder / MANIFEST).read_bytes() for folder in folders)
    return hashlib.sha256(manifests).hexdigest()[:16]


def open_work(plan: Plan, work: Path) -> None:
    """Make the folder, or see that it is this plan's, from the same start."""
    wanted = json.loads(json.dumps(dataclasses.asdict(plan) | {"start": start_of(plan)}))
    if not (work / PLAN).exists():
        write_json(work / PLAN, wanted)
        return
    there = json.loads((work / PLAN).read_text())
    # more seeds, budgets or arms only add runs
    grows = ("main_seeds", "other_seeds", "budgets", "arms", "rloo", "main_arms", "once")
    # a setting that an older plan does not have came with arms that it did not have
    changed = [k for k in wanted if k not in grows and there.get(k, wanted[k]) != wanted[k]]
    if changed:
        raise SystemExit(
            f"{work} was made with another {', '.join(changed)}: name another --work"
        )
    write_json(work / PLAN, wanted)


def drive(plan: Plan, work: Path, *, jobs: int, minutes: float, echo: Any = print) -> bool:
    """`drive_pieces` of this plan."""
    longest = max((done.get("wall", 0.0) for done in finished(plan, work)), default=0.0)
    return drive_pieces(
        lambda: pending(plan, work),
        lambda key: _start(key, work),
        longest=longest,
        jobs=jobs,
        minutes=minutes,
        echo=echo,
    )


def drive_pieces(
    pending: Callable[[], list[str]],
    begin: Callable[[str], subprocess.Popen[bytes]],
    *,
    longest: float,
    jobs: int,
    minutes: float,
    echo: Any = print,
) -> bool:
    """Run pieces until none is left (True) or the time is up (False).

    No run starts that would not end in time, going by the ``longest`` so far, seconds.
    ``pending``: keys of what is not done; ``begin``: starts one.
    """
    deadline = time.monotonic() + 60 * minutes
    working: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    while True:
        for key in [k for k, (child, _) in working.items() if child.poll() is not None]:
            child, start = working.pop(key)
            if child.returncode:
                raise SystemExit(f"{key} failed, status {child.returncode}")
            longest = max(longest, time.monotonic() - start)
            left = len(pending())
            echo(f"{key}: {time.monotonic() - start:.0f} s; {left} left", flush=True)
        waiting = [key for key in pending() if key not in working]
        if not waiting and not working:
            return True
        late = time.monotonic() + longest > deadline
        for key in [k for k in working if late and k.startswith("scores-")]:
            _stop(working.pop(key)[0])
        if late and not working:
            return False
        if waiting and len(working) < jobs and not late:
            working[waiting[0]] = (begin(waiting[0]), time.monotonic())
        else:
            time.sleep(0.2)


def _start(key: str, work: Path) -> subprocess.Popen[bytes]:
    return start(key, work, "benchmarks.training")


def start(key: str, work: Path, module: str) -> subprocess.Popen[bytes]:
    """One piece of work in a process of its own, one thread."""
    one = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-W", "ignore", "-m", module, "--do", key]
    with (work / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [*command, "--work", work], env=os.environ | one, stdout=log, stderr=log
        )


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Scoring keeps what it has at Ctrl-C."""
    child.send_signal(signal.SIGINT)
    child.wait()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training")
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--work", type=Path, help="what is done  [out/training(-quick)]")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", default="", help="weights that are trained, a folder")
    parser.add_argument("--scorer", default="", help="weights that score, if others")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--report", action="store_true", help="only report what is done")
    parser.add_argument("--results", type=Path, help="where the report goes")
    parser.add_argument("--do", metavar="KEY", help="one piece of work, in this process")
    args = parser.parse_args(argv)
    work = args.work or Path("out") / ("training-quick" if args.quick else "training")
    if args.do:
        do(read_plan(work), args.do, work)
        return 0
    if args.report:
        plan = read_plan(work)
    else:
        weights = {"model": args.model, "scorer": args.scorer}
        whole = TRANSFER if args.model or args.scorer else Plan()
        plan = dataclasses.replace(QUICK if args.quick else whole, **weights)
        open_work(plan, work)
        if not drive(plan, work, jobs=args.jobs, minutes=args.minutes):
            print(f"not done: {len(pending(plan, work))} left, call it again")
            return 0
    transfer = bool(plan.model or plan.scorer)
    name = "training_transfer" if transfer else "training"
    whole = plan.pool != QUICK.pool
    verdict = VERDICT.read_text() if whole and not transfer else ""
    results = args.results or (RESULTS if whole else work)
    for path in write_report(plan, work, results, name=name, verdict=verdict):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
