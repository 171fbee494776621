"""A synthetic data set (a "world") with ground-truth labels: images, questions, causes.

Every sample is a small image, a question whose answer is a number, and a label: the cause
why it should or should not be worth training on (``CAUSES``). Sample i is a pure function
of (seed, split, i): a larger data set starts with the samples of a smaller one.

Images are 84 x 84 pixels, three cells of 28 pixels a side: one cell is one image token
of the demo's model (patch 14, merge 2). The splits use different seeds and different
layouts: no offset, paper or line colour of one split appears in another.

What a cause means (how the model behaves on it is measured, not assumed; see
benchmarks/results/world_agreement.md):

cognitive         several cells or bars must be read and compared or added, or
                  a bar be found by its colour; the demo's model slips on about half of
                  these, because its teacher did (`Question.slip`)
language_prior    general knowledge or a sum in the question; the image is irrelevant
attention_biased  a question about one cell behind a loud, irrelevant "WARNING 7!"; the
                  demo's model was taught to repeat the word and to keep looking at it
trivial           one cell is read out
unsolvable        the reference answer is wrong
image_misleads    general knowledge, and a yellow sign that shows another number
"""

from __future__ import annotations

import io
import itertools
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RapConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

CELL = 28
SIZE = 3 * CELL

MIX = {
    "cognitive": 0.16,
    "language_prior": 0.24,
    "attention_biased": 0.16,
    "trivial": 0.24,
    "unsolvable": 0.10,
    "image_misleads": 0.10,
}
"""Share of each cause."""
CAUSES = tuple(MIX)
COGNITIVE_FAMILIES = ("bar", "compare", "sum", "chart")
TRIVIAL_FAMILIES = ("position",)
PLANTED_FAMILIES = TRIVIAL_FAMILIES + COGNITIVE_FAMILIES
IMAGE_FAMILIES = (*PLANTED_FAMILIES, "count")
"""Counting is trained and measured, but no sample of ``draw`` asks for it: the demo's model
never learned it."""
FAMILIES = (*IMAGE_FAMILIES, "fact", "arithmetic")

MAX_SAMPLES = 1_000_000
BYTES_A_SAMPLE = 8192
"""On disk: one file system block for an image of about 600 bytes, a line, a directory
entry; generous."""

COLOURS = {
    "red": (200, 30, 30),
    "green": (20, 130, 40),
    "blue": (30, 60, 200),
    "black": (20, 20, 20),
}
NAMES = tuple(COLOURS)
COLUMNS = "ABC"
YELLOW = (245, 205, 40)
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

# 5 x 7 digits, a row a string of five: no font file, the same pixels on every machine.
_GLYPHS = (
    ("01110", "10001", "10011", "10101", "11001", "10001", "01110"),
    ("00100", "01100", "00100", "00100", "00100", "00100", "01110"),
    ("01110", "10001", "00001", "00110", "01000", "10000", "11111"),
    ("11110", "00001", "00001", "01110", "00001", "00001", "11110"),
    ("00010", "00110", "01010", "10010", "11111", "00010", "00010"),
    ("11111", "10000", "11110", "00001", "00001", "10001", "01110"),
    ("01110", "10000", "10000", "11110", "10001", "10001", "01110"),
    ("11111", "00001", "00010", "00100", "01000", "01000", "01000"),
    ("01110", "10001", "10001", "01110", "10001", "10001", "01110"),
    ("01110", "10001", "10001", "01111", "00001", "00001", "01110"),
)
_SCALE = 3
_UNIT = 9
"""Pixels of a bar's unit: nine units and a gap fill the image."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How an image is rendered, whatever it shows."""

    paper: tuple[int, int, int]
    """Background."""
    line: tuple[int, int, int]
    """Colour of the lines between cells; equal to ``paper``: none are seen."""
    dx: int
    """Pixels from a cell's left edge to its digit; for bars, half of it."""
    dy: int
    """Pixels from a cell's top edge to its digit."""


_PAPERS = {
    "train": ((255, 255, 255), (250, 244, 232), (236, 244, 255), (243, 255, 240)),
    "selection": ((252, 252, 245), (244, 248, 250), (252, 240, 244)),
    "test": ((248, 255, 255), (246, 246, 238), (255, 250, 255)),
}
_LINES = {"train": (190, 200, 215, 255), "selection": (195, 210), "test": (185, 220)}
SPLITS = tuple(_PAPERS)
# Offsets (dx, dy) are assigned to the splits by (dx + dy) mod 3.
_OFFSETS = {
    split: tuple((x, y) for x in range(3, 11) for y in range(2, 6) if (x + y) % 3 == number)
    for number, split in enumerate(SPLITS)
}


def layouts(split: str) -> list[Layout]:
    """Every layout of a split; those of two splits have nothing in common."""
    _require(split in SPLITS, "split", split, f"one of {SPLITS}")
    return [
        Layout(paper, (line, line, line), dx, dy)
        for paper in _PAPERS[split]
        for line in _LINES[split]
        for dx, dy in _OFFSETS[split]
    ]


@dataclass(frozen=True, slots=True)
class Scene:
    """What an image shows."""

    kind: str
    """``"grid"``: nine digits; ``"bars"``: three bars; ``"sign"``: nine times one digit."""
    numbers: tuple[int, ...]
    """Nine digits row by row, three heights from the left (1 to 9), or one digit."""
    colours: tuple[int, ...]
    """Index into ``NAMES`` of each number."""
    layout: Layout


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


@dataclass(frozen=True, slots=True)
class WorldSample:
    """One sample with its ground-truth label, ``cause``."""

    id: str
    question: str
    answer: str
    """The reference, wrong if the cause is ``unsolvable``."""
    cause: str
    family: str
    true_answer: int
    loud: int | None
    """The irrelevant number of an ``attention_biased`` sample, the sign's number of an
    ``image_misleads`` one, else None."""
    scene: Scene


# ---- images -----------------------------------------------------------------


def render(scene: Scene) -> Image:
    """The image: RGB, 84 x 84. Only rectangles are drawn."""
    from PIL import Image, ImageDraw

    layout = scene.layout
    paper = YELLOW if scene.kind == "sign" else layout.paper
    image = Image.new("RGB", (SIZE, SIZE), paper)
    draw = ImageDraw.Draw(image)
    if scene.kind == "bars":
        for i in range(3):
            _draw_bar(draw, i, scene)
        return image
    if scene.kind == "grid" and layout.line != layout.paper:
        for at in (CELL, 2 * CELL):
            draw.line((at, 0, at, SIZE - 1), fill=layout.line)
            draw.line((0, at, SIZE - 1, at), fill=layout.line)
    for cell in range(9):
        i = cell if scene.kind == "grid" else 0
        x = cell % 3 * CELL + layout.dx
        y = cell // 3 * CELL + layout.dy
        _draw_digit(draw, x, y, scene.numbers[i], COLOURS[NAMES[scene.colours[i]]])
    return image


def _draw_digit(draw: Any, x: int, y: int, digit: int, ink: tuple[int, int, int]) -> None:
    for row, bits in enumerate(_GLYPHS[digit]):
        start = bits.find("1")
        while start >= 0:
            end = bits.find("0", start) if "0" in bits[start:] else len(bits)
            left, top = x + start * _SCALE, y + row * _SCALE
            right = x + end * _SCALE - 1
            draw.rectangle((left, top, right, top + _SCALE - 1), fill=ink)
            start = bits.find("1", end)


def _draw_bar(draw: Any, place: int, scene: Scene) -> None:
    """A stack of units with a line of paper between them, so that they can be counted."""
    ink = COLOURS[NAMES[scene.colours[place]]]
    left = place * CELL + scene.layout.dx // 2 + 1
    for unit in range(scene.numbers[place]):
        bottom = SIZE - 1 - unit * _UNIT
        draw.rectangle((left, bottom - _UNIT + 2, left + 18, bottom), fill=ink)


# ---- questions --------------------------------------------------------------


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
    _require(family in _ASK, "family", family, f"one of {FAMILIES}")
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


# ---- data sets --------------------------------------------------------------


def draw(n: int, *, seed: int = 0, split: str = "selection") -> list[WorldSample]:
    """The first ``n`` samples, causes in the shares of ``MIX`` (sampled one by one, so
    that the shares hold on average).

    Raises ``RapConfigError`` for no samples, more than a million, an unknown
    split or a seed that is no integer >= 0.
    """
    _check_size(n)
    _require(split in SPLITS, "split", split, f"one of {SPLITS}")
    _require(_is_int(seed) and seed >= 0, "seed", seed, "an integer >= 0")
    drawable = layouts(split)
    return [_sample(seed, split, i, drawable) for i in range(n)]


def _sample(seed: int, split: str, i: int, drawable: Sequence[Layout]) -> WorldSample:
    rng = random.Random(f"rap world 2 {seed} {split} {i}")
    layout = rng.choice(drawable)
    cause = rng.choices(CAUSES, weights=list(MIX.values()))[0]
    loud: int | None = None
    reference: int | None = None
    match cause:
        case "cognitive":
            question = ask(rng.choice(COGNITIVE_FAMILIES), rng, layout)
        case "language_prior":
            question = ask(rng.choice(("fact", "arithmetic")), rng, layout)
        case "attention_biased":
            question = ask("position", rng, layout)
            loud = rng.choice([d for d in range(1, 10) if d != question.answer])
        case "unsolvable":
            question = ask(rng.choice(PLANTED_FAMILIES), rng, layout)
            reference = wrong_answer(rng, question)
        case "image_misleads":
            question, loud = sign_over(rng, ask("fact", rng, layout))
        case _:
            question = ask(rng.choice(TRIVIAL_FAMILIES), rng, layout)
    text = question.text
    if cause == "attention_biased" and loud is not None:
        text = loud_text(text, rng.choice(LOUD), loud)
    return WorldSample(
        id=f"{split}-{seed}-{i:06d}",
        question=text,
        answer=str(question.answer if reference is None else reference),
        cause=cause,
        family=question.family,
        true_answer=question.answer,
        loud=loud,
        scene=question.scene,
    )


def wrong_answer(rng: random.Random, question: Question) -> int:
    """A reference that is neither the answer nor what one slip leads to: at least 3 off
    and, over bars, none of their heights."""
    right = question.answer
    near = set(range(right - 2, right + 3)) | {question.slip[1] if question.slip else right}
    if question.scene.kind == "bars":
        near |= set(question.scene.numbers)
    return rng.choice([n for n in range(1, max(10, right + 5)) if n not in near])


def png(scene: Scene) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG")
    return buffer.getvalue()


def rows(world: Sequence[WorldSample]) -> list[dict[str, Any]]:
    """One dict a sample: id, image ({"bytes", "path"}), question, answer, cause, family."""
    _check_size(len(world))
    return [
        _plain(sample) | {"image": {"bytes": png(sample.scene), "path": None}}
        for sample in world
    ]


def to_dataset(world: Sequence[WorldSample]) -> Any:
    """A ``datasets.Dataset`` in memory, with an ``Image`` column."""
    import datasets

    features = datasets.Features(
        {name: datasets.Value("string") for name in ("id", "question", "answer")}
        | {"cause": datasets.Value("string"), "family": datasets.Value("string")}
        | {"image": datasets.Image()}
    )
    return datasets.Dataset.from_list(rows(world), features=features)


def write(world: Sequence[WorldSample], folder: Path) -> Path:
    """``folder/samples.jsonl`` and ``folder/images/``; returns the JSONL file.

    Raises ``RapConfigError`` if there are no samples, or if they would take more than half
    of the free disk space.
    """
    _check_size(len(world))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    need = len(world) * BYTES_A_SAMPLE
    _require(
        need <= free / 2,
        "n",
        len(world),
        f"a data set that leaves half of the disk free: {need >> 20} MiB would be written, "
        f"{free >> 20} MiB are free in {folder}",
    )
    (folder / "images").mkdir(exist_ok=True)
    path = folder / "samples.jsonl"
    with path.open("w", encoding="utf-8") as lines:
        for sample in world:
            name = f"images/{sample.id}.png"
            (folder / name).write_bytes(png(sample.scene))
            lines.write(json.dumps(_plain(sample) | {"image": name}) + "\n")
    return path


def _plain(sample: WorldSample) -> dict[str, str]:
    names = ("id", "question", "answer", "cause", "family")
    return {name: getattr(sample, name) for name in names}


def _check_size(n: int) -> None:
    _require(_is_int(n) and n >= 1, "n", n, "at least one sample")
    _require(n <= MAX_SAMPLES, "n", n, f"at most {MAX_SAMPLES} samples")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise RapConfigError(f"{name} = {value!r}: expected {expected}")
