"""Trains the demo's model from random weights.

    python -m benchmarks.demo_model.train --out work/   # goes on from work/checkpoint.pt;
                                                        # writes work/weights/ at the end
    python -m benchmarks.demo_model.train --out work/ --seconds 500   # a piece of that
    python -m benchmarks.demo_model.train --verify 30   # first 30 steps, the shipped log

The second model, which only benchmarks need (benchmarks/second_model):

    python -m benchmarks.demo_model.train --seed 1 --width 96 --look 500 --steps 2800 \\
        --louder 2000 --restart 0
    python -m benchmarks.demo_model.train --verify 30 \\
        --log benchmarks/second_model/training.jsonl

Step s is a pure function of (seed, s): every lesson is drawn anew, nothing is cached, a
run cut into pieces takes the same steps. Losses repeat exactly with the same number of
threads (1) on the same machine and torch; the log says which.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.demo_model.lessons import BATCH, Lesson, Plan, corpus, lessons
from benchmarks.demo_model.losses import Batcher, loss_of, one_length_attention
from rap.demo.model import WEIGHTS, build_model, build_processor, save, write_manifest

LOG = "training.jsonl"
THREADS = 1
PIECES = 4


class Trainer:
    """The run's state: model, optimiser, next step; saved and resumed as a whole."""

    def __init__(self, plan: Plan) -> None:
        import torch

        torch.set_num_threads(THREADS)
        self.plan = plan
        self.processor = build_processor(corpus(plan.seed))
        self.model = build_model(
            self.processor, plan.seed, width=plan.width, layers=plan.layers
        )
        for block in self.model.model.visual.blocks:
            attn = block.attn
            attn.forward = _bound(attn)
        decay = [p for p in self.model.parameters() if p.dim() > 1]
        rest = [p for p in self.model.parameters() if p.dim() == 1]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": decay, "weight_decay": 0.02},
                {"params": rest, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            fused=True,
        )
        self.batcher = Batcher(self.processor)
        self.step = 0
        self.seconds = 0.0

    def rate(self) -> float:
        """Learning rate: up, level, and down to nothing over the last steps (twice with a
        restart); the first steps do not depend on how many there are."""
        plan, step = self.plan, self.step
        up = (step + 1) / plan.warm_up
        end = plan.restart if step < plan.restart < plan.steps else plan.steps
        down = (end - step) / plan.cool_down
        return plan.rate * min(1.0, up, down)

    def backward(self, batch: Sequence[Lesson]) -> float:
        """Gradients of the mean over the taught tokens, in pieces of lessons of similar
        length: padding to the longest of all would cost a third more. Returns the mean."""
        self.optimiser.zero_grad(set_to_none=True)
        rows = sorted((self.batcher.ids(item) + (item,) for item in batch), key=_length)
        size = BATCH // PIECES
        taught = sum(len(ids) - given for ids, given, _ in rows)
        total = 0.0
        for start in range(0, len(rows), size):
            piece = self.batcher(rows[start : start + size])
            loss = loss_of(self.model, piece) / taught
            total += loss.item()
            loss.backward()
        return total

    def train_step(self) -> dict[str, float]:
        import torch

        begin = time.perf_counter()
        rate = self.rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self.backward(lessons(self.plan, self.step))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.seconds += time.perf_counter() - begin
        done = {
            "step": self.step,
            "loss": loss,
            "rate": rate,
            "seconds": round(self.seconds, 1),
        }
        self.step += 1
        return done

    def save(self, path: Path) -> None:
        import torch

        state = {
            "plan": asdict(self.plan),
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        import torch

        state = torch.load(path, weights_only=True)
        changed = {k for k, v in asdict(self.plan).items() if state["plan"].get(k) != v}
        later = {k for k in ("restart", "louder") if getattr(self.plan, k) >= state["step"]}
        if changed - {"steps"} - later:
            raise SystemExit(f"{path} was made with another plan: {state['plan']}")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]


def _length(row: tuple[list[int], int, Lesson]) -> int:
    return len(row[0])


def _bound(attn: Any) -> Any:
    def forward(hidden_states: Any, **options: Any) -> Any:
        return one_length_attention(attn, hidden_states, **options)

    return forward


def train(plan: Plan, out: Path, *, seconds: float = math.inf) -> bool:
    """Train, or go on, until the plan is done (True) or the time is up (False)."""
    import torch

    out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = out / "checkpoint.pt", out / LOG
    trainer = Trainer(plan)
    about = asdict(plan) | {"batch": BATCH, "threads": THREADS}
    about |= {"torch": torch.__version__, "parameters": _count(trainer.model)}
    lines = [json.dumps({"about": about})]
    if checkpoint.exists():
        trainer.resume(checkpoint)
        taken = log.read_text().splitlines()[1:]
        lines += [line for line in taken if json.loads(line)["step"] < trainer.step]
    log.write_text("".join(f"{line}\n" for line in lines))
    begin = time.perf_counter()
    with log.open("a") as file:
        while trainer.step < plan.steps and time.perf_counter() - begin < seconds:
            done = trainer.train_step()
            if done["step"] < 100 or trainer.step % 10 == 0:
                file.write(json.dumps(done) + "\n")
            if trainer.step % 50 == 0:
                file.flush()
                print(json.dumps(done), flush=True)
            if trainer.step % 200 == 0:
                trainer.save(checkpoint)
    trainer.save(checkpoint)
    if trainer.step < plan.steps:
        return False
    weights = out / "weights"
    save(plain(trainer.model), trainer.processor, weights)
    shutil.copy(log, weights / LOG)
    write_manifest(weights)
    return True


def plain(model: Any) -> Any:
    """The model without the training's attention."""
    for block in model.model.visual.blocks:
        vars(block.attn).pop("forward", None)
    return model


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def verify(log: Path, steps: int) -> float:
    """Largest difference between the log's first losses and those of a new run."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    about = lines[0]["about"]
    plan = Plan(**{k: v for k, v in about.items() if k in Plan.__dataclass_fields__})
    wanted = {line["step"]: line["loss"] for line in lines[1:] if line["step"] < steps}
    trainer = Trainer(plan)
    found = {}
    for _ in range(min(steps, plan.steps)):
        done = trainer.train_step()
        found[done["step"]] = done["loss"]
    return max(abs(found[step] - loss) for step, loss in wanted.items())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo_model.train", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("demo-training"))
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--verify", type=int, metavar="STEPS")
    parser.add_argument("--log", type=Path, default=WEIGHTS / LOG, help="for --verify")
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args(argv)
    if args.verify is not None:
        worst = verify(args.log, args.verify)
        print(f"largest difference of a loss in {args.verify} steps: {worst:.3g}")
        return 0 if worst < 1e-3 else 1
    names = Plan.__dataclass_fields__
    plan = Plan(**{name: getattr(args, name) for name in names})
    done = train(plan, args.out, seconds=args.seconds)
    print("done" if done else "not done: run the same command again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
