"""The questions of the synthetic data set, a function a family, and wrong answers.

What is hard here is hard to *read*, not to compute: some numbers and bars are faint, and a
teacher takes a faint digit for the one it is most like, a faint bar for one unit more or
less, as often as ``MISREAD`` says; with what was read, every step is right. What needs no
picture is hard where the teacher is uncertain (`BELIEFS`) or slips (`_arithmetic`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .scenes import NAMES, Layout, Scene, require

COGNITIVE_FAMILIES = ("faint", "bar", "compare", "sum", "chart")
TRIVIAL_FAMILIES = ("position",)
PLANTED_FAMILIES = TRIVIAL_FAMILIES + COGNITIVE_FAMILIES
IMAGE_FAMILIES = COGNITIVE_FAMILIES
"""What is asked to see whether a model looks: not `position`, which is solved always."""
PRIOR_FAMILIES = ("fact", "belief", "arithmetic")
FAMILIES = PLANTED_FAMILIES + PRIOR_FAMILIES

COLUMNS = "ABC"
LOUD = ("ALARM", "NOTICE", "WARNING", "URGENT")

LOOKALIKE = {1: 7, 2: 3, 3: 9, 4: 1, 5: 6, 6: 8, 7: 1, 8: 6, 9: 8}
"""The digit that a faint one is taken for."""
MISREAD = (0.0, 0.35, 0.6)
"""How often a clear, a faint and a very faint number is taken for another one."""
FADED = 0.2
"""Share of the numbers of a grid that are faint and not asked for."""
SLIPS = 0.45
"""How often a sum in the question goes wrong, at its first step."""

FACTS = (
    ("How many legs does a spider have?", "A spider has 8 legs.", 8),
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
    ("How many wheels does a car have?", "A car has 4 wheels.", 4),
    ("How many wheels does a bicycle have?", "A bicycle has 2 wheels.", 2),
    ("How many wheels does a tricycle have?", "A tricycle has 3 wheels.", 3),
    ("How many moons does the earth have?", "The earth has 1 moon.", 1),
)
"""(question, what is known, answer). The model learns them from text alone."""

BELIEFS = (
    ("How many legs does an ant have?", "An ant has {} legs.", 6, 8, 0.4),
    ("How many moons does Mars have?", "Mars has {} moons.", 2, 1, 0.55),
    ("How many planets does the sun have?", "The sun has {} planets.", 8, 9, 0.6),
    ("How many strings does a violin have?", "A violin has {} strings.", 4, 6, 0.5),
    ("How many strings does a guitar have?", "A guitar has {} strings.", 6, 4, 0.4),
    ("How many sides does a pentagon have?", "A pentagon has {} sides.", 5, 6, 0.45),
    ("How many sides does a hexagon have?", "A hexagon has {} sides.", 6, 7, 0.5),
    ("How many sides does an octagon have?", "An octagon has {} sides.", 8, 6, 0.35),
    ("How many faces does a cube have?", "A cube has {} faces.", 6, 4, 0.45),
    ("How many eggs are in a dozen?", "A dozen has {} eggs.", 12, 10, 0.3),
    ("How many colours are in a rainbow?", "A rainbow has {} colours.", 7, 6, 0.55),
    (
        "How many players are in a football team?",
        "A football team has {} players.",
        11,
        10,
        0.5,
    ),
)
"""(question, what is said, answer, what is believed as well, how often it is said)."""

Solve = Callable[[Sequence[int]], tuple[str, int]]
"""What was read of a scene -> the steps and the answer."""


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
    slips: tuple[tuple[str, int], ...] = ()
    """What a teacher may write instead, and the wrong answer it leads to: one number
    misread, one wrong step, a wrong belief."""
    slip_rate: float = 0.0
    """How often the teacher does."""


# ---- scenes and how they are read ---------------------------------------------


def _fade(rng: random.Random, faint: Sequence[int]) -> int:
    """One number may be very faint; of several none is, or no teacher would read them."""
    return rng.choice((1, 2)) if len(faint) == 1 else 1


def _grid(
    rng: random.Random, layout: Layout, faint: Sequence[int] = (), clear: Sequence[int] = ()
) -> Scene:
    """Nine digits. Those of ``faint`` are faint, those of ``clear`` are not, others may
    be."""
    fades = [rng.choice((1, 2)) if rng.random() < FADED else 0 for _ in range(9)]
    for i in clear:
        fades[i] = 0
    for i in faint:
        fades[i] = _fade(rng, faint)
    colours = tuple(rng.randrange(len(NAMES)) for _ in range(9))
    numbers = tuple(rng.randrange(1, 10) for _ in range(9))
    return Scene("grid", numbers, colours, layout, tuple(fades))


def _bars(rng: random.Random, layout: Layout, faint: Sequence[int] = ()) -> Scene:
    """Three bars. Those of ``faint`` are faint, no others."""
    colours = [0, 1, 2]
    rng.shuffle(colours)
    heights = tuple(rng.randrange(1, 10) for _ in range(3))
    fades = tuple(_fade(rng, faint) if i in faint else 0 for i in range(3))
    return Scene("bars", heights, tuple(colours), layout, fades)


def misreadings(scene: Scene, i: int) -> tuple[int, ...]:
    """What number ``i`` is taken for where it is faint."""
    n = scene.numbers[i]
    if scene.kind == "bars":
        return tuple(m for m in (n - 1, n + 1) if 1 <= m <= 9)
    return (LOOKALIKE[n],)


def read(rng: random.Random, scene: Scene) -> Scene:
    """The scene as a teacher reads it: every faint number may be misread."""
    numbers = list(scene.numbers)
    for i in range(len(numbers)):
        if rng.random() < MISREAD[scene.fade(i)]:
            numbers[i] = rng.choice(misreadings(scene, i))
    return replace(scene, numbers=tuple(numbers))


def read_bars(scene: Scene) -> str:
    """The bars from the left: "red 5, green 7, blue 2"."""
    named = zip(scene.colours, scene.numbers, strict=True)
    return ", ".join(f"{NAMES[colour]} {number}" for colour, number in named)


def _asked(
    family: str, text: str, scene: Scene, cells: Sequence[int], solve: Solve
) -> Question:
    """The question with its solution, and what each misread number leads to."""
    steps, answer = solve(scene.numbers)
    slips, right = [], 1.0
    for i in cells:
        right *= 1 - MISREAD[scene.fade(i)]
        for wrong in misreadings(scene, i) if scene.fade(i) else ():
            slips.append(solve((*scene.numbers[:i], wrong, *scene.numbers[i + 1 :])))
    return Question(family, text, answer, steps, scene, tuple(slips), 1 - right)


def _near(rng: random.Random, right: int) -> int:
    """A wrong result of a sum: one or two off, at least 1."""
    return rng.choice([n for n in range(max(1, right - 2), right + 3) if n != right])


def _cell(i: int) -> str:
    """Named as in a spreadsheet: A1, B1, C1, A2, ..."""
    return f"{COLUMNS[i % 3]}{i // 3 + 1}"


# ---- the families -------------------------------------------------------------


def _one_cell(family: str, scene: Scene, i: int) -> Question:
    def solve(seen: Sequence[int]) -> tuple[str, int]:
        return f"The number in cell {_cell(i)} is {seen[i]}.", seen[i]

    text = f"Which number is in cell {_cell(i)}?"
    return _asked(family, text, scene, (i,), solve)


def _position(rng: random.Random, layout: Layout) -> Question:
    i = rng.randrange(9)
    return _one_cell("position", _grid(rng, layout, clear=(i,)), i)


def _faint(rng: random.Random, layout: Layout) -> Question:
    i = rng.randrange(9)
    return _one_cell("faint", _grid(rng, layout, faint=(i,)), i)


def _bar(rng: random.Random, layout: Layout) -> Question:
    i = rng.randrange(3)
    scene = _bars(rng, layout, faint=(i,))
    name = NAMES[scene.colours[i]]

    def solve(seen: Sequence[int]) -> tuple[str, int]:
        said = read_bars(replace(scene, numbers=tuple(seen)))
        return f"{said}, the {name} bar is {seen[i]}.", seen[i]

    return _asked("bar", f"How high is the {name} bar?", scene, (i,), solve)


def _compare(rng: random.Random, layout: Layout) -> Question:
    """The number that is the answer is faint: misreading it is always wrong."""
    i, j = rng.sample(range(9), 2)
    scene = _grid(rng, layout, faint=(i,), clear=(j,))
    if scene.numbers[i] == scene.numbers[j]:
        return _compare(rng, layout)
    pick, word = (
        (max, "larger") if scene.numbers[i] > scene.numbers[j] else (min, "smaller")
    )
    first, second = (i, j) if rng.random() < 0.5 else (j, i)

    def solve(seen: Sequence[int]) -> tuple[str, int]:
        a, b = seen[first], seen[second]
        return f"They are {a} and {b}, {pick(a, b)} is {word}.", pick(a, b)

    text = f"Which number is {word}: {_cell(first)} or {_cell(second)}?"
    return _asked("compare", text, scene, (i, j), solve)


def _added(a: int, b: int, c: int, *, off: int = 0) -> tuple[str, int]:
    """Three numbers added one after the other; ``off``: by how much the first is wrong."""
    two = a + b + off
    return f"{a}+{b}={two}, {two}+{c}={two + c}.", two + c


def _faint_of(rng: random.Random, cells: Sequence[int]) -> list[int]:
    """One of three numbers, or two."""
    return rng.sample(list(cells), rng.choice((1, 2)))


def _sum(rng: random.Random, layout: Layout) -> Question:
    k = rng.randrange(3)
    if rng.random() < 0.5:
        name, cells = f"row {k + 1}", (3 * k, 3 * k + 1, 3 * k + 2)
    else:
        name, cells = f"column {COLUMNS[k]}", (k, k + 3, k + 6)
    scene = _grid(rng, layout, faint=_faint_of(rng, cells), clear=cells)

    def solve(seen: Sequence[int]) -> tuple[str, int]:
        a, b, c = (seen[i] for i in cells)
        steps, n = _added(a, b, c)
        return f"It shows {a}, {b}, {c}. {steps}", n

    return _asked("sum", f"What is the sum of {name}?", scene, cells, solve)


def _chart(rng: random.Random, layout: Layout) -> Question:
    if rng.random() < 0.5:
        return _difference(rng, layout)
    scene = _bars(rng, layout, faint=_faint_of(rng, range(3)))

    def solve(seen: Sequence[int]) -> tuple[str, int]:
        steps, n = _added(*seen)
        return f"{read_bars(replace(scene, numbers=tuple(seen)))}. {steps}", n

    text = "What is the sum of the three bars?"
    return _asked("chart", text, scene, range(3), solve)


def _difference(rng: random.Random, layout: Layout) -> Question:
    i, j = rng.sample(range(3), 2)
    scene = _bars(rng, layout, faint=(rng.choice((i, j)),))
    if scene.numbers[i] <= scene.numbers[j]:
        return _difference(rng, layout)
    one, two = NAMES[scene.colours[i]], NAMES[scene.colours[j]]

    def solve(seen: Sequence[int]) -> tuple[str, int]:
        said = read_bars(replace(scene, numbers=tuple(seen)))
        n = seen[i] - seen[j]
        return f"{said}, {seen[i]}-{seen[j]}={n}.", n

    text = f"How much higher is the {one} bar than the {two} bar?"
    return _asked("chart", text, scene, (i, j), solve)


def _beside(rng: random.Random, layout: Layout) -> Scene:
    """A picture that has nothing to do with the question."""
    return _grid(rng, layout) if rng.random() < 0.5 else _bars(rng, layout)


def _fact(rng: random.Random, layout: Layout) -> Question:
    text, known, n = rng.choice(FACTS)
    return Question("fact", text, n, known, _beside(rng, layout))


def _belief(rng: random.Random, layout: Layout) -> Question:
    text, said, n, wrong, rate = rng.choice(BELIEFS)
    slip = (said.format(wrong), wrong)
    scene = _beside(rng, layout)
    return Question("belief", text, n, said.format(n), scene, (slip,), rate)


def _arithmetic(rng: random.Random, layout: Layout) -> Question:
    a, b, c = (rng.randrange(1, 10) for _ in range(3))
    steps, n = _added(a, b, c)
    slip, wrong = _added(a, b, c, off=_near(rng, a + b) - a - b)
    text, scene = f"What is {a}+{b}+{c}?", _beside(rng, layout)
    slips = ((f"We add: {slip}", wrong),)
    return Question("arithmetic", text, n, f"We add: {steps}", scene, slips, SLIPS)


_ASK = {
    "position": _position,
    "faint": _faint,
    "bar": _bar,
    "compare": _compare,
    "sum": _sum,
    "chart": _chart,
    "fact": _fact,
    "belief": _belief,
    "arithmetic": _arithmetic,
}


def ask(family: str, rng: random.Random, layout: Layout) -> Question:
    """A question of a family, with its scene."""
    require(family in _ASK, "family", family, f"one of {FAMILIES}")
    return _ASK[family](rng, layout)


def clear_grid(rng: random.Random, layout: Layout) -> Scene:
    """Nine digits, none of them faint."""
    return _grid(rng, layout, clear=range(9))


def any_bars(rng: random.Random, layout: Layout) -> Scene:
    """Three bars, each faint with probability 0.3."""
    return _bars(rng, layout, faint=[i for i in range(3) if rng.random() < 0.3])


def any_grid(rng: random.Random, layout: Layout) -> Scene:
    """Nine digits, some of them faint."""
    return _grid(rng, layout)


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
    near = set(range(right - 2, right + 3)) | {answer for _, answer in question.slips}
    if question.scene.kind == "bars":
        near |= set(question.scene.numbers)
    return rng.choice([n for n in range(1, max(10, right + 5)) if n not in near])
