"""What a trainer's writer is given and what a trainer's format is: ``Row``, ``Target``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ..samples.prompts import stands_in_place
from ..samples.sample import Turn

MANIFEST = "rap_export.json"
ROWS_AT_A_TIME = 64
Made = TypeVar("Made")


def parts(rows: Iterable[Made]) -> Iterator[list[Made]]:
    """The rows, a few at a time: their images are large."""
    rows = iter(rows)
    while part := list(islice(rows, ROWS_AT_A_TIME)):
        yield part


@dataclass(frozen=True, slots=True)
class Picture:
    """Encoded bytes, their sha256, and the format's name, lower case."""

    data: bytes
    sha256: str
    kind: str

    @property
    def name(self) -> str:
        return f"{self.sha256}.{'jpg' if self.kind == 'jpeg' else self.kind}"


@dataclass(frozen=True, slots=True)
class Row:
    """One kept sample. ``prompt``: question and choices as scored, without image tags
    unless the images stand inside the text; ``turns``: what was said before.
    ``answer``: what the trainer's reward compares with (``answers.answer_to_train``)."""

    id: str
    index: int
    prompt: str
    question: str
    answer: str
    choices: tuple[str, ...]
    pictures: tuple[Picture, ...]
    source: str | None
    reason: str
    turns: tuple[Turn, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """What was said, turn by turn."""
        return (*(text for _, text in self.turns), self.prompt)

    @property
    def in_place(self) -> bool:
        """Whether ``<image>`` stands in the texts, one for each picture."""
        return stands_in_place(self.texts, len(self.pictures))

    @property
    def tagged(self) -> str:
        """The prompt with one ``<image>`` per image: at its place, or before the text."""
        return self.messages()[-1]["content"]

    def messages(self, *, tagged: bool = True) -> list[dict[str, str]]:
        """The chat; ``tagged``: with one ``<image>`` per image."""
        said = [*self.turns, ("user", self.prompt)]
        before = "" if self.in_place or not tagged else "<image>" * len(self.pictures)
        first = next(i for i, (role, _) in enumerate(said) if role == "user")
        return [
            {"role": role, "content": before + text if i == first else text}
            for i, (role, text) in enumerate(said)
        ]


@dataclass
class Writing:
    """Where a writer writes, and what it says it wrote.

    ``seen_as``: the folder as the trainer will see it. ``samples``: ids in the order of
    the file; ``left_out``: ids without a row."""

    folder: Path
    seen_as: Path
    data_source: str | None = None
    completions: Mapping[str, tuple[str, str]] | None = None
    samples: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Target:
    """A trainer. ``name``: its own spelling. ``upright``: its loader applies a rotation in
    EXIF. ``latex``: its own checker reads mathematics only. ``tags``: texts that it takes
    for placeholders. ``notes``: (folder, most images a row) -> what to set.
    ``is_its_own``: a row of a data set is in the trainer's form already. ``form``: what the
    files are for. ``groups``: its rows name the sample's group. ``pairs``: with completions
    it gets pairs of a right and a wrong one. ``tags_in_answer``: it looks for placeholders
    in the answer, too. ``data_source``: it picks its reward by one.
    ``turns``: it keeps turns before the question; ``in_place``: images inside a text."""

    name: str
    write: Callable[[Iterable[Row], Writing], None]
    notes: Callable[[Path, int], list[str]]
    is_its_own: Callable[[Mapping[str, Any]], bool]
    upright: bool
    groups: bool = False
    latex: bool = False
    tags: tuple[str, ...] = ("<image>", "<video>", "<audio>")
    form: str = "prompts for GRPO"
    pairs: bool = False
    tags_in_answer: bool = False
    turns: bool = True
    in_place: bool = True
    data_source: bool = False
