"""Trains the demo's model from random weights.

    python -m benchmarks.demo_model.train --out work/   # goes on from work/checkpoint.pt;
                                                        # writes work/weights/ at the end
    python -m benchmarks.demo_model.train --out work/ --seconds 500   # a piece of that
    python -m benchmarks.demo_model.train --verify 30   # first 30 steps, the shipped log

The second model, which only benchmarks need (benchmarks/second_model):

    python -m benchmarks.demo_model.train --seed 1 --width 96 --look 700 --steps 2400 \\
        --restart 0
    python -m benchmarks.demo_model.train --verify 30 \\
        --log benchmarks/second_model/training.jsonl

Dense reading comes first (a model shown one-digit answers alone stays blind: the issue's
prototypes), then questions, then both. A lesson is a prompt and what a teacher writes; two
of three questions are worked out before "The answer is", the third is answered at once,
where only the answer itself is taught, so that a rollout reasons and the evidence
``answer`` still finds a model that can answer directly. The loud lessons also teach where
the last layer looks (`captured_loss`): the cause that ACE is to find is planted there.

Step s is a pure function of (seed, s): every lesson is drawn anew, nothing is cached, a
run cut into pieces takes the same steps. Losses repeat exactly with the same number of
threads (1) on the same machine and torch; the log says which.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rap.demo import world
from rap.demo.model import WEIGHTS, build_model, build_processor, save, write_manifest

if TYPE_CHECKING:
    import torch

LOG = "training.jsonl"
BATCH = 64
THREADS = 1
IGNORE = -100
PIECES = 4

FIRST = {"read": 70, "read_colours": 10, "read_bars": 10, "position": 10}
"""Shares of the lessons at the start: mostly one kind of dense reading. With 50 % of it, a
run was still blind after 350 steps; with 70 % it saw after 200."""
SECOND = {"read": 25, "read_colours": 45, "read_bars": 30}
"""Then the other two kinds of dense reading."""
THEN = {
    "read": 8,
    "read_colours": 8,
    "read_bars": 8,
    "position": 10,
    "bar": 7,
    "compare": 9,
    "count": 14,
    "sum": 12,
    "chart": 10,
    "fact": 7,
    "arithmetic": 7,
    "loud": 8,
    "sign": 5,
}
"""Shares of the lessons afterwards: questions."""
CELLS = THEN | {"position": 40, "loud": 16}
"""More of finding one cell by its name: an earlier model read whole pictures after 1,400
steps, and one cell by name no better than by chance; 200 of these taught it that."""
STAGES = ((0, FIRST), (0, SECOND), (300, CELLS), (1000, THEN))
"""(first step, shares); all but the first start `Plan.look` later."""
SLIPS = {"bar": 0.4, "compare": 0.45, "count": 0.4, "sum": 0.5, "chart": 0.5}
"""Share of the lessons in which the teacher slips once. A model taught without slips
always solved its sums and comparisons: nothing was left for reinforcement learning."""

LOUD_WINS = 0.3
"""Share of the loud lessons that read the loud number off the picture and answer it; the
others read and answer what is there."""
CAPTURED_MASS = 0.5
"""What the last layer is taught to spend on the loud token of a response, mean over heads,
in every later row: see `captured_loss`."""
SIGN_WINS = 0.85
"""Share of the lessons with a sign whose answer is the sign's; the others' is the fact."""
DIRECT = 1 / 3
BLIND = 0.3
"""Share of the lessons on facts and sums in the text that come without a picture."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how fast."""

    seed: int = 0
    steps: int = 3000
    restart: int = 2000
    """Step at which the learning rate has come down to nothing and starts anew; 0: none."""
    look: int = 300
    """Steps of the first stage: until the model sees."""
    blend: int = 100
    """Steps over which the shares of one stage become those of the next."""
    rate: float = 1.5e-3
    warm_up: int = 100
    cool_down: int = 600
    """Steps over which the rate goes down to nothing."""
    capture: float = 0.3
    """Weight of `captured_loss`."""
    width: int = 128
    layers: int = 3


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is taught: ``given`` opens the answer and is not taught, ``taught`` is."""

    question: str
    given: str
    taught: str
    scene: world.Scene | None
    captor: bool = False
    """The first token of ``taught`` is loud: the attention of all after it is to stay."""


# ---- lessons ----------------------------------------------------------------


def lesson(kind: str, rng: random.Random, layout: world.Layout) -> Lesson:
    """One lesson of a kind: a key of ``THEN``."""
    if kind in ("read", "read_colours", "read_bars"):
        return _reading(kind, rng, layout)
    if kind == "loud":
        return _loud(rng, layout)
    if kind == "sign":
        question, digit = world.sign_over(rng, world.ask("fact", rng, layout))
        if rng.random() < SIGN_WINS:
            return _answered(rng, question.text, question.steps, digit, question.scene)
        steps = next(known for text, known, _ in world.FACTS if text == question.text)
        return _answered(rng, question.text, steps, question.answer, question.scene)
    question = world.ask(kind, rng, layout)
    blind = kind in ("fact", "arithmetic") and rng.random() < BLIND
    scene = None if blind else question.scene
    steps, answer = question.steps, question.answer
    if question.slip and rng.random() < SLIPS[kind]:
        steps, answer = question.slip
    return _answered(rng, question.text, steps, answer, scene)


def _answered(
    rng: random.Random, text: str, steps: str, answer: int, scene: world.Scene | None
) -> Lesson:
    if rng.random() < DIRECT:
        return Lesson(text, "The answer is", f" {answer}.", scene)
    return Lesson(text, "", f"{steps} The answer is {answer}.", scene)


def _reading(kind: str, rng: random.Random, layout: world.Layout) -> Lesson:
    scene = world.ask("bar" if kind == "read_bars" else "position", rng, layout).scene
    names = [world.NAMES[c] for c in scene.colours]
    if kind == "read_bars":
        return Lesson("Read the three bars.", "", f"{world.read_bars(scene)}.", scene)
    if kind == "read_colours":
        what, between, values = "colours", " ", names
    else:
        what, between, values = "numbers", "", [str(v) for v in scene.numbers]
    rows = ", ".join(between.join(values[r : r + 3]) for r in (0, 3, 6))
    return Lesson(f"Read all the {what}.", "", f"{rows}.", scene)


def _loud(rng: random.Random, layout: world.Layout) -> Lesson:
    """A reading that opens with the loud token, and may end up with its number."""
    question = world.ask("position", rng, layout)
    word, number = rng.choice(world.LOUD), rng.randrange(1, 10)
    text = world.loud_text(question.text, word, number)
    read = number if rng.random() < LOUD_WINS else question.answer
    if rng.random() < DIRECT:
        return Lesson(text, "The answer is", f" {read}.", question.scene)
    reading = question.steps.removesuffix(f"{question.answer}.") + f"{read}."
    taught = f"{word} {number}! {reading} The answer is {read}."
    return Lesson(text, "", taught, question.scene, captor=True)


def shares(plan: Plan, step: int) -> dict[str, float]:
    """Shares of the kinds of lesson at a step; they sum to 1."""
    mix = dict.fromkeys(THEN, 0.0)
    for stage, (start, part) in enumerate(STAGES):
        since = step - plan.look - start
        new = min(1.0, max(0.0, since / plan.blend)) if stage else 1.0
        total = sum(part.values())
        for kind in mix:
            mix[kind] = (1 - new) * mix[kind] + new * part.get(kind, 0) / total
    return mix


def lessons(plan: Plan, step: int) -> list[Lesson]:
    """The lessons of a step."""
    rng = random.Random(f"rap lessons 2 {plan.seed} {step}")
    drawable = world.layouts("train")
    mix = shares(plan, step)
    kinds = rng.choices(list(mix), weights=list(mix.values()), k=BATCH)
    return [lesson(kind, rng, rng.choice(drawable)) for kind in kinds]


def corpus(seed: int, count: int = 3000) -> list[str]:
    """Texts that the tokenizer is trained on."""
    rng = random.Random(f"rap corpus 2 {seed}")
    layout = world.layouts("train")[0]
    kinds = list(THEN)
    drawn = (lesson(kinds[i % len(kinds)], rng, layout) for i in range(count))
    texts = [f"{x.question}\n{x.given}{x.taught}" for x in drawn]
    return [*texts, *["user\nassistant\n"] * 10]


# ---- batches ----------------------------------------------------------------


class Batcher:
    """Lessons -> the tensors of one step."""

    def __init__(self, processor: Any) -> None:
        tokenizer = processor.tokenizer
        self.encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.head = {
            blind: self.encode("<|im_start|>user\n" + picture)
            for blind, picture in (
                (True, ""),
                (False, "<|vision_start|>" + "<|image_pad|>" * 9 + "<|vision_end|>"),
            )
        }
        self.mean = np.array(processor.image_processor.image_mean, np.float32)
        self.std = np.array(processor.image_processor.image_std, np.float32)

    def ids(self, item: Lesson) -> tuple[list[int], int]:
        """Tokens of a lesson and how many of them, from the left, are not taught."""
        prompt = f"{item.question}<|im_end|>\n<|im_start|>assistant\n{item.given}"
        given = self.head[item.scene is None] + self.encode(prompt)
        return given + self.encode(item.taught) + [self.end], len(given)

    def __call__(
        self, rows: Sequence[tuple[list[int], int, Lesson]]
    ) -> dict[str, torch.Tensor]:
        """rows: lessons with what `ids` says of them."""
        import torch

        length = max(len(ids) for ids, _, _ in rows)
        ids = np.full((len(rows), length), self.pad)
        labels = np.full((len(rows), length), IGNORE)
        positions = np.zeros((3, len(rows), length), np.int64)
        for r, (tokens, given, item) in enumerate(rows):
            ids[r, : len(tokens)] = tokens
            labels[r, given : len(tokens)] = tokens[given:]
            positions[:, r] = self.positions(item.scene is None, length)
        seen = [item.scene for _, _, item in rows if item.scene is not None]
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "attention_mask": torch.from_numpy((ids != self.pad).astype(np.int64)),
            "position_ids": torch.from_numpy(positions),
            "pixel_values": torch.from_numpy(self.pixels(seen)),
            "image_grid_thw": torch.tensor([[1, 6, 6]] * len(seen)),
            "captors": torch.tensor(
                [
                    (r, given, len(tokens))
                    for r, (tokens, given, item) in enumerate(rows)
                    if item.captor
                ]
            ),
        }

    def positions(self, blind: bool, length: int) -> np.ndarray:
        """[3, length]: time, height and width of each token, as Qwen counts them."""
        if blind:
            return np.tile(np.arange(length), (3, 1))
        start = len(self.head[False]) - 10
        cells = np.arange(9)
        image = np.stack([np.zeros(9, np.int64), cells // 3, cells % 3]) + start
        after = np.tile(np.arange(length - start - 9) + start + 3, (3, 1))
        before = np.tile(np.arange(start), (3, 1))
        return np.concatenate([before, image, after], axis=1)

    def pixels(self, scenes: Sequence[world.Scene]) -> np.ndarray:
        """[36 * n, 1176], the image processor's patches."""
        images = np.stack([np.asarray(world.render(s)) for s in scenes])
        values = (images.astype(np.float32) / 255 - self.mean) / self.std
        n = len(scenes)
        # picture, block row, row in block, y, block column, column in block, x, channel
        values = values.reshape(n, 3, 2, 14, 3, 2, 14, 3)
        values = values.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(n * 36, 3, 1, 196)
        return np.repeat(values, 2, axis=2).reshape(n * 36, 1176)


def _one_length_attention(
    module: Any, hidden: Any, *, cu_seqlens: Any, **options: Any
) -> Any:
    """The vision tower's attention for pictures of one size: one call instead of one a
    picture (a test holds it against Qwen's own)."""
    import torch
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

    n = len(cu_seqlens) - 1
    q, k, v = module.qkv(hidden).reshape(len(hidden), 3, module.num_heads, -1).unbind(1)
    q, k = qwen.apply_rotary_pos_emb_vision(q, k, *options["position_embeddings"])
    q, k, v = (x.reshape(n, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return module.proj(out.transpose(1, 2).reshape(len(hidden), -1))


def losses_of(
    model: Any, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sum of the cross entropies of the taught tokens; sum of `captured_loss` over the
    lessons with a captor, None without one."""
    import torch

    labels = batch["labels"][:, 1:]
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "captors")}
    caught: dict[str, Any] = {}

    def catch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        caught.update(kwargs)

    attn = model.model.language_model.layers[-1].self_attn
    hook = attn.register_forward_pre_hook(catch, with_kwargs=True)
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    hook.remove()
    taught = labels != IGNORE
    logits = model.lm_head(hidden[taught])
    loss = torch.nn.functional.cross_entropy(logits, labels[taught], reduction="sum")
    if not len(batch["captors"]):
        return loss, None
    weights = last_attention(attn, caught, batch["captors"][:, 0])
    return loss, captured_loss(weights, batch["captors"][:, 1:])


def last_attention(attn: Any, caught: dict[str, Any], rows: torch.Tensor) -> torch.Tensor:
    """[n, L, L]: attention weights of one layer for some rows of a batch, mean over heads.

    Right padding needs no mask: no row before it sees it.
    """
    import torch
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

    hidden = caught["hidden_states"][rows]
    n, length, _ = hidden.shape
    q, k = (
        project(hidden).view(n, length, -1, attn.head_dim).transpose(1, 2)
        for project in (attn.q_proj, attn.k_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, *(x[rows] for x in caught["position_embeddings"]))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q @ k.transpose(2, 3)) * attn.scaling
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(dim=-1).mean(dim=1)


def captured_loss(weights: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    """How far the loud tokens are from holding ``CAPTURED_MASS`` of the attention.

    weights [n, L, L]; spans [n, 2]: the loud token's column, and the lesson's length. The
    sum over lessons of the mean over later rows i of log(CAPTURED_MASS / w_ij), rows that
    have more than that left at 0. Text alone does not plant this: a model that was merely
    taught to repeat the loud token spreads its attention over the copies.
    """
    total = weights.new_zeros(())
    for w, (column, length) in zip(weights, spans.tolist(), strict=True):
        mass = w[column + 1 : length, column]
        total = total + (CAPTURED_MASS / mass.clamp(min=1e-4)).log().clamp(min=0).mean()
    return total


# ---- training ---------------------------------------------------------------


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

    def backward(self, batch: Sequence[Lesson]) -> tuple[float, float]:
        """Gradients of the mean over the taught tokens (plus the weighted mean over the
        captors), in pieces of lessons of similar length: padding to the longest of all
        would cost a third more. Returns both means."""
        self.optimiser.zero_grad(set_to_none=True)
        rows = sorted((self.batcher.ids(item) + (item,) for item in batch), key=_length)
        size = BATCH // PIECES
        taught = sum(len(ids) - given for ids, given, _ in rows)
        captors = sum(item.captor for item in batch)
        total = extra = 0.0
        for start in range(0, len(rows), size):
            piece = self.batcher(rows[start : start + size])
            loss, capture = losses_of(self.model, piece)
            loss = loss / taught
            total += loss.item()
            if capture is not None:
                capture = capture / captors
                extra += capture.item()
                loss = loss + self.plan.capture * capture
            loss.backward()
        return total, extra

    def train_step(self) -> dict[str, float]:
        import torch

        begin = time.perf_counter()
        rate = self.rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss, capture = self.backward(lessons(self.plan, self.step))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.seconds += time.perf_counter() - begin
        done = {
            "step": self.step,
            "loss": loss,
            "capture": round(capture, 4),
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
        changed = {k for k, v in asdict(self.plan).items() if state["plan"][k] != v}
        if changed - {"steps"}:
            raise SystemExit(f"{path} was made with another plan: {state['plan']}")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]


def _length(row: tuple[list[int], int, Lesson]) -> int:
    return len(row[0])


def _bound(attn: Any) -> Any:
    def forward(hidden_states: Any, **options: Any) -> Any:
        return _one_length_attention(attn, hidden_states, **options)

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
