"""The data types of this stage: a sample, its images by reference, what cannot be used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TEXT_ONLY = "text_only"
"""Code of a row without an image: set aside, but no fault of the data."""


class BadSample(Exception):
    """One sample cannot be used; scoring turns this into a quarantined row.

    ``stage`` is where it was found (``data``, ``image``, ``prompt``, ``model``,
    ``check``), ``code`` one of the quarantine codes, ``message`` a sentence.
    """

    def __init__(self, stage: str, code: str, message: str) -> None:
        super().__init__(f"{stage}: {code}: {message}")
        self.stage, self.code, self.message = stage, code, message

    def __reduce__(self) -> tuple[Any, ...]:
        return BadSample, (self.stage, self.code, self.message)


Turn = tuple[str, str]
"""(role, text) of one turn of a chat; roles are system, user, assistant."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image, not yet read: its encoded bytes, or an absolute path inside the root."""

    data: bytes | None
    path: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One usable row."""

    index: int
    """Row in the data set."""
    id: str
    """Opaque text, unique in the data set."""
    question: str
    """The user's last turn. ``<image>`` stands in it only where an image's place in the
    text matters (``prompts``)."""
    answer: str
    """The reference answer as given: free text, a choice's letter or its text."""
    choices: tuple[str, ...]
    """Empty if the question is open."""
    images: tuple[ImageRef, ...]
    """At least one."""
    source: str | None
    """Group for budgets per source."""
    extra: Mapping[str, object]
    """The row's columns under their own names, images left out: what the user's reward
    function is called with besides the images."""
    turns: tuple[Turn, ...] = ()
    """(role, text) of the turns before the question: system, user, assistant."""
    stated: tuple[str, ...] = ()
    """Options that stand in the question itself (``stated``), of which the answer is one;
    () where ``choices`` has them or there are none."""
    settled: str | None = None
    """The reference as its column reads it (``column``), where it could be read in two
    ways; None: as it stands."""

    @property
    def reference(self) -> str:
        """The answer that a response is compared with, for ``read_answer``."""
        return self.answer if self.settled is None else self.settled

    @property
    def options(self) -> tuple[str, ...]:
        """What a response is compared with: the choices, or the options in the question."""
        return self.choices or self.stated


@dataclass(frozen=True, slots=True)
class Bad:
    """One row that cannot be used, and why."""

    index: int
    id: str
    stage: str
    code: str
    message: str


def sample_sha256(sample: Sample, image_hashes: Sequence[str]) -> str:
    """sha256 of what a sample's score depends on: turns, question, answer, choices,
    images; of the texts as they stand, not as their column reads them."""
    fields: list[Any] = [sample.question, sample.answer, list(sample.choices)]
    fields += [list(image_hashes), *([list(sample.turns)] if sample.turns else [])]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def clean(text: str, name: str) -> str:
    """The text, if a Parquet file and a tokenizer can hold it."""
    if "\0" in text:
        raise BadSample("data", "bad_text", f"{name} holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadSample("data", "bad_text", f"{name} holds a lone surrogate") from None
    return text
