"""What the demo's model is taught, and in which order: pure functions of (seed, step).

Dense reading comes first (a model shown one-digit answers alone stays blind: the issue's
prototypes), then questions, then both. A lesson is a prompt and what a teacher writes; two
of three questions are worked out before "The answer is", the third is answered at once,
where only the answer itself is taught, so that a rollout reasons and the evidence
``answer`` still finds a model that can answer directly. Nothing but tokens is taught: where
the model looks is its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rap.demo import world

BATCH = 64
FIRST = {"read": 70, "read_colours": 10, "read_bars": 10, "position": 10}
"""Shares of the lessons at the start: mostly one kind of dense reading. With 50 % of it, a
run was still blind after 350 steps; with 70 % it saw after 200."""
SECOND = {"read": 10, "read_faint": 20, "read_colours": 40, "read_bars": 30}
"""Then the other kinds of dense reading."""
THEN = {
    "read": 4,
    "read_faint": 8,
    "read_colours": 5,
    "read_bars": 9,
    "position": 9,
    "faint": 9,
    "bar": 10,
    "compare": 9,
    "sum": 12,
    "chart": 11,
    "fact": 4,
    "belief": 6,
    "arithmetic": 9,
    "loud": 9,
    "sign": 5,
}
"""Shares of the lessons afterwards: questions."""
CELLS = THEN | {"position": 30, "faint": 10, "loud": 16}
"""More of finding one cell by its name: an earlier model read whole pictures after 1,400
steps, and one cell by name no better than by chance; 200 of these taught it that."""
LOUDER = THEN | {"position": 15, "loud": 45}
"""More of the loud word at last: after 3,200 steps the model read every cell by its name,
and behind a loud word none: it repeated the loud number or guessed."""
STAGES = ((0, FIRST), (0, SECOND), (250, CELLS), (800, THEN))
"""(first step, shares); all but the first start `Plan.look` later. The last, `LOUDER`,
starts at `Plan.louder`."""
LOUD_WINS = 0.5
"""Share of the loud lessons that read the loud number off the picture and answer it; the
others read and answer what is there. All repeat the loud word first."""
SIGN_WINS = 0.85
"""Share of the lessons with a sign whose answer is the sign's; the others' is the fact."""
DIRECT = 1 / 3
BLIND = 0.3
"""Share of the lessons on facts and sums in the text that come without a picture."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how fast."""

    seed: int = 0
    steps: int = 4000
    restart: int = 3200
    """Step at which the learning rate has come down to nothing and starts anew; 0: none."""
    look: int = 400
    """Steps of the first stage: until the model sees."""
    louder: int = 3200
    """Step at which `LOUDER` begins."""
    blend: int = 100
    """Steps over which the shares of one stage become those of the next."""
    rate: float = 1.5e-3
    warm_up: int = 100
    cool_down: int = 600
    """Steps over which the rate goes down to nothing."""
    width: int = 128
    layers: int = 3


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is taught: ``given`` opens the answer and is not taught, ``taught`` is."""

    question: str
    given: str
    taught: str
    scene: world.Scene | None


def lesson(kind: str, rng: random.Random, layout: world.Layout) -> Lesson:
    """One lesson of a kind: a key of ``THEN``."""
    if kind.startswith("read"):
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
    blind = kind in world.PRIOR_FAMILIES and rng.random() < BLIND
    scene = None if blind else question.scene
    steps, answer = question.steps, question.answer
    if question.slips and rng.random() < question.slip_rate:
        steps, answer = rng.choice(question.slips)
    return _answered(rng, question.text, steps, answer, scene)


def _answered(
    rng: random.Random, text: str, steps: str, answer: int, scene: world.Scene | None
) -> Lesson:
    if rng.random() < DIRECT:
        return Lesson(text, "The answer is", f" {answer}.", scene)
    return Lesson(text, "", f"{steps} The answer is {answer}.", scene)


def _reading(kind: str, rng: random.Random, layout: world.Layout) -> Lesson:
    if kind == "read_bars":
        scene = world.any_bars(rng, layout)
        taught = world.read_bars(world.read(rng, scene))
        return Lesson("Read the three bars.", "", f"{taught}.", scene)
    faint = kind != "read"
    scene = (world.any_grid if faint else world.clear_grid)(rng, layout)
    if kind == "read_colours":
        what, between, values = "colours", " ", [world.NAMES[c] for c in scene.colours]
    else:
        seen = world.read(rng, scene).numbers
        what, between, values = "numbers", "", [str(v) for v in seen]
    rows = ", ".join(between.join(values[r : r + 3]) for r in (0, 3, 6))
    return Lesson(f"Read all the {what}.", "", f"{rows}.", scene)


def _loud(rng: random.Random, layout: world.Layout) -> Lesson:
    """A reading that opens with the loud word, and may end up with its number."""
    question = world.ask("position", rng, layout)
    word, number = rng.choice(world.LOUD), rng.randrange(1, 10)
    text = world.loud_text(question.text, word, number)
    said = number if rng.random() < LOUD_WINS else question.answer
    reading = question.steps.removesuffix(f"{question.answer}.") + f"{said}."
    return _answered(rng, text, f"{word} {number}! {reading}", said, question.scene)


def shares(plan: Plan, step: int) -> dict[str, float]:
    """Shares of the kinds of lesson at a step; they sum to 1."""
    mix = dict.fromkeys(THEN, 0.0)
    stages = (*STAGES, (plan.louder - plan.look, LOUDER))
    for stage, (start, part) in enumerate(stages):
        since = step - plan.look - start
        new = min(1.0, max(0.0, since / plan.blend)) if stage else 1.0
        total = sum(part.values())
        for kind in mix:
            mix[kind] = (1 - new) * mix[kind] + new * part.get(kind, 0) / total
    return mix


def lessons(plan: Plan, step: int) -> list[Lesson]:
    """The lessons of a step."""
    rng = random.Random(f"rap lessons 3 {plan.seed} {step}")
    drawable = world.layouts("train")
    mix = shares(plan, step)
    kinds = rng.choices(list(mix), weights=list(mix.values()), k=BATCH)
    return [lesson(kind, rng, rng.choice(drawable)) for kind in kinds]


def corpus(seed: int, count: int = 3000) -> list[str]:
    """Texts that the tokenizer is trained on."""
    rng = random.Random(f"rap corpus 3 {seed}")
    layout = world.layouts("train")[0]
    kinds = list(THEN)
    drawn = (lesson(kinds[i % len(kinds)], rng, layout) for i in range(count))
    texts = [f"{x.question}\n{x.given}{x.taught}" for x in drawn]
    return [*texts, *["user\nassistant\n"] * 10]
