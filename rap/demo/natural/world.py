"""Questions about the pictures, of kinds whose right answer comes from different places.

Sample i is a pure function of (seed, split, i). No cause is planted: a family says where
the answer *can* come from, and what a sample is for the model is measured (64 completions
with the image and without it, and the question without its distracting sentence;
benchmarks/natural_world).

colour, side_colour   a colour that is read off the picture, against what the language
                      model expects (a blue banana)
object, side_object   an object that is named
choice, yesno         two answers are possible, one of two is guessed without looking
count, tallest        one to four copies; a chart of three bars
distractor            colour, after a sentence that says another colour
knowledge             the colour that an object *usually* has, beside a picture in another
said                  the colour that the sentence says, beside a picture in another
text, sum             the answer is in the question; the picture is irrelevant

Object-colour pairs are divided: ``train`` (the projector's training) and ``selection``
never show the same pair.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import RapConfigError
from . import pictures
from .pictures import COLOURS, THINGS, Thing

if TYPE_CHECKING:
    from PIL.Image import Image

END = " Answer in one word."
SPLITS = ("train", "selection", "test")
PEOPLE = ("Tom", "Ann", "Ben", "Eva", "Max", "Mia")
OWNED = ("ball", "coat", "kite", "cup", "bag", "hat")


@dataclass(frozen=True, slots=True)
class Asked:
    """A picture and a question about it."""

    picture: Image
    text: str
    answer: str
    distractor: str | None = None
    """The sentence of ``text`` that says something else than the picture."""


@dataclass(frozen=True, slots=True)
class NaturalSample:
    """One sample: ``question`` without the image, ``answer`` is the reference."""

    id: str
    family: str
    question: str
    answer: str
    distractor: str | None
    picture: Image


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample's random numbers and the object-colour pairs of its split."""

    rng: random.Random
    split: str

    def pair(self, *, usual: bool = False, other: Thing | None = None) -> tuple[Thing, str]:
        """An object and a colour that is not its usual one, a pair of this split.

        ``usual``: the object has a usual colour; ``other``: the object is another one.
        """
        while True:
            thing = self.rng.choice(THINGS)
            colour = self.rng.choice(tuple(COLOURS))
            if usual and thing.usual is None or thing is other or colour == thing.usual:
                continue
            if held_out(thing.name, colour) == (self.split != "train"):
                return thing, colour

    def colour_but(self, *colours: str) -> str:
        """A colour that is none of these."""
        return self.rng.choice([c for c in COLOURS if c not in colours])

    def thing_but(self, *things: Thing) -> Thing:
        """An object that is none of these."""
        return self.rng.choice([t for t in THINGS if t not in things])

    def either(self, right: str, wrong: str) -> tuple[str, str]:
        """Both, in a random order."""
        return (right, wrong) if self.rng.random() < 0.5 else (wrong, right)


def held_out(name: str, colour: str) -> bool:
    """A quarter of the object-colour pairs, which the projector's training never shows."""
    return random.Random(f"rap natural {name} {colour}").random() < 0.25


def _colour(draw: Draw) -> Asked:
    thing, colour = draw.pair()
    if thing.usual and draw.rng.random() < 0.25:
        return Asked(
            pictures.one(thing.name, None),
            f"What colour is the {thing.name} in the picture?",
            thing.usual,
        )
    return Asked(
        pictures.one(thing.name, colour),
        f"What colour is the {thing.name} in the picture?",
        colour,
    )


def _object(draw: Draw) -> Asked:
    thing, colour = draw.pair()
    return Asked(pictures.one(thing.name, colour), "What is in the picture?", thing.name)


def _choice(draw: Draw) -> Asked:
    thing, colour = draw.pair()
    first, second = draw.either(thing.name, draw.thing_but(thing).name)
    text = f"Is the picture of a {first} or of a {second}?"
    return Asked(pictures.one(thing.name, colour), text, thing.name)


def _yesno(draw: Draw) -> Asked:
    thing, colour = draw.pair()
    right = draw.rng.random() < 0.5
    asked = colour if right else draw.colour_but(colour)
    text = f"Is the {thing.name} in the picture {asked}?"
    return Asked(pictures.one(thing.name, colour), text, "yes" if right else "no")


def _sides(draw: Draw) -> tuple[Image, str, tuple[Thing, str]]:
    left = draw.pair()
    right = draw.pair(other=left[0])
    while right[1] == left[1]:
        right = draw.pair(other=left[0])
    side, what = draw.rng.choice((("left", left), ("right", right)))
    picture = pictures.pair((left[0].name, left[1]), (right[0].name, right[1]))
    return picture, side, what


def _side_object(draw: Draw) -> Asked:
    picture, side, (thing, _) = _sides(draw)
    return Asked(picture, f"What is on the {side} side of the picture?", thing.name)


def _side_colour(draw: Draw) -> Asked:
    picture, side, (_, colour) = _sides(draw)
    return Asked(picture, f"What colour is the object on the {side}?", colour)


def _count(draw: Draw) -> Asked:
    thing, colour = draw.pair()
    count = draw.rng.randint(1, 4)
    picture = pictures.several(thing.name, colour, count)
    return Asked(picture, f"How many {thing.plural} are in the picture?", str(count))


def _tallest(draw: Draw) -> Asked:
    colours = draw.rng.sample(list(COLOURS), 3)
    heights = draw.rng.sample([1, 2, 3], 3)
    word, height = draw.rng.choice((("tallest", 3), ("shortest", 1)))
    answer = colours[heights.index(height)]
    return Asked(pictures.bars(colours, heights), f"What colour is the {word} bar?", answer)


def _distractor(draw: Draw) -> Asked:
    thing, colour = draw.pair()
    says = f"My friend says that the {thing.name} is {draw.colour_but(colour)}."
    text = f"{says} What colour is the {thing.name} in the picture?"
    return Asked(pictures.one(thing.name, colour), text, colour, says)


def _knowledge(draw: Draw) -> Asked:
    thing, colour = draw.pair(usual=True)
    text = f"What colour is a real {thing.name} usually?"
    return Asked(pictures.one(thing.name, colour), text, thing.usual or "")


def _said(draw: Draw) -> Asked:
    thing, colour = draw.pair()
    said = draw.colour_but(colour)
    text = (
        f"My friend says that the {thing.name} is {said}. "
        f"What colour does my friend say that it is?"
    )
    return Asked(pictures.one(thing.name, colour), text, said)


def _text(draw: Draw) -> Asked:
    thing, shown = draw.pair()
    first, second = draw.rng.sample(PEOPLE, 2)
    owned = draw.rng.choice(OWNED)
    colours = draw.rng.sample([c for c in COLOURS if c != shown], 2)
    k = draw.rng.randrange(2)
    text = (
        f"{first} has a {colours[0]} {owned} and {second} has a {colours[1]} {owned}. "
        f"What colour is the {owned} of {(first, second)[k]}?"
    )
    return Asked(pictures.one(thing.name, shown), text, colours[k])


def _sum(draw: Draw) -> Asked:
    thing, colour = draw.pair()
    a, b = draw.rng.randint(2, 9), draw.rng.randint(2, 9)
    return Asked(pictures.one(thing.name, colour), f"What is {a} + {b}?", str(a + b))


FAMILIES: dict[str, tuple[Callable[[Draw], Asked], float]] = {
    "colour": (_colour, 0.14),
    "object": (_object, 0.10),
    "choice": (_choice, 0.08),
    "yesno": (_yesno, 0.08),
    "side_object": (_side_object, 0.08),
    "side_colour": (_side_colour, 0.10),
    "count": (_count, 0.08),
    "tallest": (_tallest, 0.08),
    "distractor": (_distractor, 0.08),
    "knowledge": (_knowledge, 0.06),
    "said": (_said, 0.04),
    "text": (_text, 0.05),
    "sum": (_sum, 0.03),
}
"""How a family asks, and its share of a data set."""
TAUGHT = (
    "colour",
    "object",
    "choice",
    "yesno",
    "side_object",
    "side_colour",
    "count",
    "tallest",
)
"""Families that the projector's training uses; what the others need is natural."""


def draw(
    n: int,
    *,
    seed: int = 0,
    split: str = "selection",
    families: Sequence[str] | None = None,
) -> list[NaturalSample]:
    """The first ``n`` samples.

    Raises ``RapConfigError`` for n below 1 or an unknown split or family.
    """
    if n < 1:
        raise RapConfigError(f"n is {n}; expected at least 1")
    if split not in SPLITS:
        raise RapConfigError(f"split is {split!r}; expected one of {SPLITS}")
    names = tuple(families or FAMILIES)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise RapConfigError(
            f"no family {unknown[0]!r}; expected some of {tuple(FAMILIES)}"
        )
    return [_sample(seed, split, i, names) for i in range(n)]


def _sample(seed: int, split: str, i: int, names: Sequence[str]) -> NaturalSample:
    rng = random.Random(f"rap natural world 1 {seed} {split} {i}")
    family = rng.choices(names, weights=[FAMILIES[name][1] for name in names])[0]
    asked = FAMILIES[family][0](Draw(rng, split))
    return NaturalSample(
        id=f"natural-{split}-{seed}-{i:05d}",
        family=family,
        question=asked.text + END,
        answer=asked.answer,
        distractor=asked.distractor,
        picture=asked.picture,
    )


def rows(samples: Sequence[NaturalSample]) -> list[dict[str, Any]]:
    """One dict a sample: id, image ({"bytes", "path"}), question, answer, family."""
    return [
        {
            "id": s.id,
            "image": {"bytes": pictures.png(s.picture), "path": None},
            "question": s.question,
            "answer": s.answer,
            "family": s.family,
        }
        for s in samples
    ]


def write(samples: Sequence[NaturalSample], folder: Path) -> Path:
    """``folder/samples.jsonl`` and the pictures beside it; returns the JSONL file."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for sample, row in zip(samples, rows(samples), strict=True):
        name = f"images/{sample.id}.png"
        (folder / name).write_bytes(row["image"]["bytes"])
        lines.append(json.dumps(row | {"image": name}))
    path = folder / "samples.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
