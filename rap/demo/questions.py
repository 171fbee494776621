"""The questions of the synthetic data set, a function a family, and wrong answers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .scenes import NAMES, Layout, Scene, require

COGNITIVE_FAMILIES = ("bar", "compare", "sum", "chart")
TRIVIAL_FAMILIES = ("position",)
PLANTED_FAMILIES = TRIVIAL_FAMILIES + COGNITIVE_FAMILIES
IMAGE_FAMILIES = (*PLANTED_FAMILIES, "count")
"""Counting is trained and measured, but no sample of ``draw`` asks for it: the demo's model
never learned it."""
FAMILIES = (*IMAGE_FAMILIES, "fact", "arithmetic")

COLUMNS = "ABC"
LOUD = ("ALARM", "NOTICE", "WARNING", "URGENT")

FACTS = (
    ("How many legs does a spider have?", "A spider has 8 legs.", 8),
    ("How many legs does an ant have?", "An ant has 6 legs.", 6),
    ("How many legs does a dog have?", "A dog has 4 legs.", 4),
    ("How many legs does a bird have?", "A bird has 2 legs.", 2),
    ("How many arms does an octopus have?", "An octopus has 8 arms.", 8),
    ("How many fingers are on one hand?", "One hand has 5 fingers.", 5),
    ("How many fingers are on two hands?", "Two hands have 10 fingers.", 10),
    ("How many days are in a week?", "A week has 7 days.", 7),
    ("How many months are in a year?", "A year has 12 months.", 12),
    ("How many hours are in a day?", "A day has 24 hours.", 24),
    ("How many seasons are in a year?", "A year has 4 seasons.", 4),
    ("How many sides does a triangle have?", "A triangle has 3 sides.", 3),
    ("How many sides does a square have?", "A square has 4 sides.", 4),
    ("How many sides does a pentagon have?", "A pentagon has 5 sides.", 5),
    ("How many sides does a hexagon have?", "A hexagon has 6 sides.", 6),
    ("How many sides does an octagon have?", "An octagon has 8 sides.", 8),
    ("How many wheels does a car have?", "A car has 4 wheels.", 4),
    ("How many wheels does a bicycle have?", "A bicycle has 2 wheels.", 2),
    ("How many wheels does a tricycle have?", "A tricycle has 3 wheels.", 3),
    ("How many moons does Mars have?", "Mars has 2 moons.", 2),
    ("How many moons does the earth have?", "The earth has 1 moon.", 1),
    ("How many planets does the sun have?", "The sun has 8 planets.", 8),
    ("How many strings does a guitar have?", "A guitar has 6 strings.", 6),
    ("How many strings does a violin have?", "A violin has 4 strings.", 4),
    ("How many eggs are in a dozen?", "A dozen has 12 eggs.", 12),
    ("How many colours are in a rainbow?", "A rainbow has 7 colours.", 7),
    ("How many players are in a football team?", "A football team has 11 players.", 11),
    ("How many faces does a cube have?", "A cube has 6 faces.", 6),
)
"""(question, what is known, answer). The model learns them from text alone."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene and its solution."""

    family: str
    text: str
    answer: int
    """The true answer."""
    steps: str
    """What a teacher writes before "The answer is": only the training reads it."""
    scene: Scene
    slip: tuple[str, int] | None = None
    """What a teacher who slips once writes instead, and the wrong answer it leads to;
    None for what is answered in one step."""


def _grid(
    rng: random.Random, layout: Layout, numbers: Sequence[int] | None = None
) -> Scene:
    numbers = numbers or [rng.randrange(1, 10) for _ in range(9)]
    colours = tuple(rng.randrange(len(NAMES)) for _ in range(9))
    return Scene("grid", tuple(numbers), colours, layout)


def _bars(rng: random.Random, layout: Layout) -> Scene:
    colours = [0, 1, 2]
    rng.shuffle(colours)
    heights = tuple(rng.randrange(1, 10) for _ in range(3))
    return Scene("bars", heights, tuple(colours), layout)


def read_bars(scene: Scene) -> str:
    """The bars from the left: "red 5, green 7, blue 2"."""
    named = zip(scene.colours, scene.numbers, strict=True)
    return ", ".join(f"{NAMES[colour]} {number}" for colour, number in named)


def _near(rng: random.Random, right: int) -> int:
    """A wrong result of a sum or a difference: one or two off, at least 1."""
    return rng.choice([n for n in range(max(1, right - 2), right + 3) if n != right])


def _cell(i: int) -> str:
    """Named as in a spreadsheet: A1, B1, C1, A2, ..."""
    return f"{COLUMNS[i % 3]}{i // 3 + 1}"


def _position(rng: random.Random, layout: Layout) -> Question:
    scene = _grid(rng, layout)
    i = rng.randrange(9)
    n = scene.numbers[i]
    text = f"Which number is in cell {_cell(i)}?"
    return Question("position", text, n, f"The number in cell {_cell(i)} is {n}.", scene)


def _bar(rng: random.Random, layout: Layout) -> Question:
    scene = _bars(rng, layout)
    i = rng.randrange(3)
    n, name = scene.numbers[i], NAMES[scene.colours[i]]
    others = [m for m in scene.numbers if m != n] or [_near(rng, n)]
    wrong = rng.choice(others)
    text = f"How high is the {name} bar?"
    read = read_bars(scene)
    steps, slip = (f"{read}, the {name} bar is {m}." for m in (n, wrong))
    return Question("bar", text, n, steps, scene, (slip, wrong))


def _compare(rng: random.Random, layout: Layout) -> Question:
    scene = _grid(rng, layout)
    i = rng.randrange(9)
    others = [j for j in range(9) if scene.numbers[j] != scene.numbers[i]]
    if not others:
        return _compare(rng, layout)
    j = rng.choice(others)
    a, b = scene.numbers[i], scene.numbers[j]
    word, n = ("larger", max(a, b)) if rng.random() < 0.5 else ("smaller", min(a, b))
    wrong = a + b - n
    text = f"Which number is {word}: {_cell(i)} or {_cell(j)}?"
    steps, slip = (f"They are {a} and {b}, {m} is {word}." for m in (n, wrong))
    return Question("compare", text, n, steps, scene, (slip, wrong))


def _count(rng: random.Random, layout: Layout) -> Question:
    """The count is sampled first, uniformly from 1 to 6: a guess is right once in six."""
    count = rng.randrange(1, 7)
    marked = [True] * count + [False] * (9 - count)
    rng.shuffle(marked)
    by_colour = rng.random() < 0.5
    one = rng.randrange(len(NAMES)) if by_colour else rng.randrange(1, 10)
    rest = [v for v in (range(len(NAMES)) if by_colour else range(1, 10)) if v != one]
    values = tuple(one if m else rng.choice(rest) for m in marked)
    if by_colour:
        scene = Scene("grid", tuple(rng.randrange(1, 10) for _ in range(9)), values, layout)
        name, read = NAMES[one], [NAMES[v] for v in values]
        text = f"How many numbers are {name}?"
    else:
        scene = _grid(rng, layout, values)
        name, read = str(one), [str(v) for v in values]
        text = f"How many cells show the number {name}?"
    missed = rng.randrange(9)
    seen = [m != (i == missed) for i, m in enumerate(marked)]
    steps, slip = (_count_steps(read, m) for m in (marked, seen))
    return Question("count", text, count, steps, scene, (slip, sum(seen)))


def _count_steps(read: Sequence[str], marked: Sequence[bool]) -> str:
    """Each cell and how many there are so far: "red:0 green:1 green:2, ..."."""
    so_far = list(itertools.accumulate(map(int, marked)))
    cells = [f"{what}:{n}" for what, n in zip(read, so_far, strict=True)]
    return ", ".join(" ".join(cells[r : r + 3]) for r in (0, 3, 6)) + "."


def _added(rng: random.Random, a: int, b: int, c: int) -> tuple[str, tuple[str, int]]:
    """Three numbers added one after the other, and the same with a slip at the end."""
    right, wrong = a + b + c, _near(rng, a + b + c)
    steps, slip = (f"{a}+{b}={a + b}, {a + b}+{c}={n}." for n in (right, wrong))
    return steps, (slip, wrong)


def _sum(rng: random.Random, layout: Layout) -> Question:
    scene = _grid(rng, layout)
    k = rng.randrange(3)
    if rng.random() < 0.5:
        name, cells = f"row {k + 1}", (3 * k, 3 * k + 1, 3 * k + 2)
    else:
        name, cells = f"column {COLUMNS[k]}", (k, k + 3, k + 6)
    a, b, c = (scene.numbers[i] for i in cells)
    text = f"What is the sum of {name}?"
    steps, slip = _added(rng, a, b, c)
    return Question("sum", text, a + b + c, steps, scene, slip)


def _chart(rng: random.Random, layout: Layout) -> Question:
    scene = _bars(rng, layout)
    if rng.random() < 0.5:
        a, b, c = scene.numbers
        text = "What is the sum of the three bars?"
        steps, slip = _added(rng, a, b, c)
        return Question("chart", text, a + b + c, steps, scene, slip)
    order = sorted(range(3), key=lambda i: -scene.numbers[i])
    i, j = order[0], order[rng.randrange(1, 3)]
    a, b = scene.numbers[i], scene.numbers[j]
    if a == b:
        return _chart(rng, layout)
    one, two = NAMES[scene.colours[i]], NAMES[scene.colours[j]]
    text = f"How much higher is the {one} bar than the {two} bar?"
    wrong = _near(rng, a - b)
    right_steps, wrong_steps = (f"{read_bars(scene)}, {a}-{b}={n}." for n in (a - b, wrong))
    return Question("chart", text, a - b, right_steps, scene, (wrong_steps, wrong))


def _fact(rng: random.Random, layout: Layout) -> Question:
    text, known, n = rng.choice(FACTS)
    scene = _grid(rng, layout) if rng.random() < 0.5 else _bars(rng, layout)
    return Question("fact", text, n, known, scene)


def _arithmetic(rng: random.Random, layout: Layout) -> Question:
    a, b = rng.randrange(1, 10), rng.randrange(1, 10)
    scene = _grid(rng, layout) if rng.random() < 0.5 else _bars(rng, layout)
    steps = f"We add: {a}+{b}={a + b}."
    return Question("arithmetic", f"What is {a}+{b}?", a + b, steps, scene)


_ASK = {
    "position": _position,
    "bar": _bar,
    "compare": _compare,
    "count": _count,
    "sum": _sum,
    "chart": _chart,
    "fact": _fact,
    "arithmetic": _arithmetic,
}


def ask(family: str, rng: random.Random, layout: Layout) -> Question:
    """A question of a family, with its scene."""
    require(family in _ASK, "family", family, f"one of {FAMILIES}")
    return _ASK[family](rng, layout)


def loud_text(text: str, word: str, number: int) -> str:
    """The question behind an over-emphasised token that has nothing to do with it."""
    return f"{word} {number}! {word} {number}! {word} {number}! {text}"


def sign_over(rng: random.Random, question: Question) -> tuple[Question, int]:
    """The same question over a yellow sign with another digit, and that digit."""
    digit = rng.choice([d for d in range(1, 10) if d != question.answer])
    colour = rng.randrange(len(NAMES))
    scene = Scene("sign", (digit,), (colour,), question.scene.layout)
    steps = f"The sign shows {digit}, so it is {digit}."
    return Question("fact", question.text, question.answer, steps, scene), digit


def wrong_answer(rng: random.Random, question: Question) -> int:
    """A reference that is neither the answer nor what one slip leads to: at least 3 off
    and, over bars, none of their heights."""
    right = question.answer
    near = set(range(right - 2, right + 3)) | {question.slip[1] if question.slip else right}
    if question.scene.kind == "bars":
        near |= set(question.scene.numbers)
    return rng.choice([n for n in range(1, max(10, right + 5)) if n not in near])
