"""A synthetic data set (a "world") with ground-truth labels: images, questions, causes.

Every sample is a small image, a question whose answer is a number, and a label: the cause
why it should or should not be worth training on (``CAUSES``). Sample i is a pure function
of (seed, split, i): a larger data set starts with the samples of a smaller one.

The splits use different seeds and different layouts. ``scenes`` draws the images,
``questions`` asks about them.

What a cause means (how the model behaves on it is measured, not assumed; see
benchmarks/results/world_agreement.md):

cognitive         faint numbers or bars must be read, some compared or added; the
                  demo's model misreads them, because its teacher did (`questions.MISREAD`)
language_prior    general knowledge or a sum in the question; the image is irrelevant.
                  Three of four are hard: the teacher was uncertain or slipped
attention_biased  a question about one cell behind a loud, irrelevant "WARNING 7!"; in half
                  of the lessons the teacher answered 7, and the demo's model follows the
                  word or guesses
trivial           one clear cell is read out
unsolvable        the reference answer is wrong
image_misleads    general knowledge, and a yellow sign that shows another number
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .questions import (
    BELIEFS,
    COGNITIVE_FAMILIES,
    FACTS,
    FAMILIES,
    IMAGE_FAMILIES,
    LOUD,
    PLANTED_FAMILIES,
    PRIOR_FAMILIES,
    TRIVIAL_FAMILIES,
    Question,
    any_bars,
    any_grid,
    ask,
    clear_grid,
    loud_text,
    read,
    read_bars,
    sign_over,
    wrong_answer,
)
from .scenes import (
    CELL,
    COLOURS,
    NAMES,
    SIZE,
    SPLITS,
    Layout,
    Scene,
    layouts,
    png,
    render,
    require,
)

MIX = {
    "cognitive": 0.18,
    "language_prior": 0.28,
    "attention_biased": 0.14,
    "trivial": 0.20,
    "unsolvable": 0.10,
    "image_misleads": 0.10,
}
"""Share of each cause."""
CAUSES = tuple(MIX)
_PRIORS = (*PRIOR_FAMILIES, "arithmetic")
"""Of the questions that need no picture one in four is easy."""

MAX_SAMPLES = 1_000_000
BYTES_A_SAMPLE = 8192
"""On disk: one file system block for an image of about 600 bytes, a line, a directory
entry; generous."""


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


def draw(n: int, *, seed: int = 0, split: str = "selection") -> list[WorldSample]:
    """The first ``n`` samples, causes in the shares of ``MIX`` (sampled one by one, so
    that the shares hold on average).

    Raises ``RapConfigError`` for no samples, more than a million, an unknown
    split or a seed that is no integer >= 0.
    """
    _check_size(n)
    require(split in SPLITS, "split", split, f"one of {SPLITS}")
    require(_is_int(seed) and seed >= 0, "seed", seed, "an integer >= 0")
    drawable = layouts(split)
    return [_sample(seed, split, i, drawable) for i in range(n)]


def _sample(seed: int, split: str, i: int, drawable: Sequence[Layout]) -> WorldSample:
    rng = random.Random(f"rap world 3 {seed} {split} {i}")
    layout = rng.choice(drawable)
    cause = rng.choices(CAUSES, weights=list(MIX.values()))[0]
    loud: int | None = None
    reference: int | None = None
    match cause:
        case "cognitive":
            question = ask(rng.choice(COGNITIVE_FAMILIES), rng, layout)
        case "language_prior":
            question = ask(rng.choice(_PRIORS), rng, layout)
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


def reworded(sample: WorldSample) -> WorldSample | None:
    """The same sample behind another loud number (neither the old one nor the answer);
    None where there is no loud word. What the loud word does to the answer is seen by
    changing it."""
    word = next((w for w in LOUD if sample.question.startswith(f"{w} ")), None)
    if word is None or sample.loud is None:
        return None
    taken = (sample.loud, sample.true_answer)
    rng = random.Random(f"rap reworded {sample.id}")
    number = rng.choice([d for d in range(1, 10) if d not in taken])
    text = sample.question.removeprefix(loud_text("", word, sample.loud))
    return replace(sample, question=loud_text(text, word, number), loud=number)


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
    require(
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
    require(_is_int(n) and n >= 1, "n", n, "at least one sample")
    require(n <= MAX_SAMPLES, "n", n, f"at most {MAX_SAMPLES} samples")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


__all__ = [
    "BELIEFS",
    "BYTES_A_SAMPLE",
    "CAUSES",
    "CELL",
    "COGNITIVE_FAMILIES",
    "COLOURS",
    "FACTS",
    "FAMILIES",
    "IMAGE_FAMILIES",
    "LOUD",
    "MAX_SAMPLES",
    "MIX",
    "NAMES",
    "PLANTED_FAMILIES",
    "PRIOR_FAMILIES",
    "SIZE",
    "SPLITS",
    "TRIVIAL_FAMILIES",
    "Layout",
    "Question",
    "Scene",
    "WorldSample",
    "any_bars",
    "any_grid",
    "ask",
    "clear_grid",
    "draw",
    "layouts",
    "loud_text",
    "png",
    "read",
    "read_bars",
    "render",
    "reworded",
    "rows",
    "sign_over",
    "to_dataset",
    "write",
    "wrong_answer",
]
