"""Host-side preparation of samples: `Job` (a sample and the row of the score table being
filled for it), the text and tokens of its reference, and worker threads that prepare jobs
ahead of the model (`ahead`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..config import ScoreConfig
from ..samples.answers import read_answer
from ..samples.sample import BadSample, Sample
from ..samples.text import clean
from ..scores.table import QUARANTINED, SCORED

if TYPE_CHECKING:
    from ..engines import Said
    from ..model.driver import ModelDriver, Prepared
    from .asking import Asking

Item = TypeVar("Item")
Made = TypeVar("Made")

SOLUTION_COLUMNS = ("response", "solution", "rationale", "explanation")
"""Columns that may hold a worked solution, for evidence ``logits``."""


COST = ("forwards", "generated_tokens", "seconds", "n_drawn", "n_cut")
"""Columns of what a sample has cost, kept also where it is quarantined."""


@dataclass(slots=True)
class Job:
    """One sample and the row of the score table that is being filled for it."""

    row: dict[str, Any]
    sample: Sample = None  # type: ignore[assignment]  # only where the row is bad
    image: Prepared | None = None
    """Prompt (and response, where it is known beforehand) with the image."""
    blind: Prepared | None = None
    """The same without it."""
    answer: Prepared | None = None
    """The answer with the image (evidence ``logits``: for the difficulty)."""
    blind_answer: Prepared | None = None
    """The same without it."""
    asking: Asking | None = None
    """Evidence ``cascade``: what its round decides by."""
    asked: dict[str, tuple[Said, ...]] = field(default_factory=dict)
    """The prompt turn by turn, ``image`` and ``blind``, for an engine that is asked."""
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    groups: int = 0
    """Groups of completions that were sampled, and those that were ``degenerate``."""
    degenerate_groups: int = 0
    inputs: str = ""
    """``reuse.inputs_sha256`` of what else the score is made from."""
    reused: bool = False
    """Not scored by this pass: for an older data set, or in a round before."""
    read: list[tuple[bool, bool, list[int]]] = field(default_factory=list)
    """In a profiled run, what the model read for it: (without the image?, any image
    tokens?, tokens)."""

    @property
    def alive(self) -> bool:
        return self.row["status"] == SCORED

    def quarantine(self, stage: str, code: str, message: str) -> None:
        """End this sample: its scores are dropped, what it cost is kept."""
        kept = ("id", "index", "source", "image_sha256", "sample_sha256", "evidence")
        self.row = {k: self.row[k] for k in (*kept, *COST) if k in self.row}
        self.row |= {
            "status": QUARANTINED,
            "stage": stage,
            "code": code,
            "message": clean(message),
        }
        self.image = self.blind = self.answer = self.blind_answer = None
        self.asked = {}


def reference_text(sample: Sample, config: ScoreConfig) -> str:
    """The answer that is teacher-forced, as ``read_answer`` reads it: without markup.

    A sample with choices, where the prompt lists them as "(A) text", is answered by the
    letter of the right choice, whether the data set gives the letter or the text: one
    short form, comparable between samples, and the one the prompt asks for. Without
    choices it is the reference's first accepted answer; with a template that leaves the
    choices out, the right choice's text. Raises ``BadSample`` where it cannot be read.
    """
    try:
        reference = read_answer(sample.reference, sample.choices)
    except ValueError as error:
        raise BadSample("data", "bad_answer", str(error)) from None
    if sample.choices and "{choices}" in config.prompt_template:
        return reference.letter
    return reference.text if sample.choices else reference.accepted[0].written


def answer_tokens(
    driver: ModelDriver, sample: Sample, config: ScoreConfig
) -> tuple[str, list[int]]:
    """(prefix text, answer tokens), split where the tokenizer splits them.

    Most tokenizers put a space at the start of a word (" B" is one token, " " + "B" two
    unusual ones), so white space at the end of the prefix moves to the answer, and the
    answer's tokens are what the whole has more than the prefix.
    """
    prefix = config.answer_prefix.rstrip()
    space = config.answer_prefix[len(prefix) :]
    text = space + reference_text(sample, config)
    if not prefix:
        return "", driver.encode_response(text.lstrip())
    before = driver.encode_response(prefix)
    whole = driver.encode_response(prefix + text)
    if len(whole) > len(before) and whole[: len(before)] == before:
        return prefix, whole[len(before) :]
    return config.answer_prefix, driver.encode_response(text.lstrip())


def reference_solution(sample: Sample) -> str | None:
    """A worked solution the data set brings: a column of its own that says more than the
    answer, or what the reference works out before it answers."""
    for name in SOLUTION_COLUMNS:
        value = sample.extra.get(name)
        if isinstance(value, str) and len(value.strip()) > len(sample.answer.strip()):
            return value.strip()
    return read_answer(sample.answer, sample.choices).solution


def ahead(
    prepare: Callable[[Item], Made], items: Iterable[Item], *, workers: int, depth: int
) -> Generator[Made]:
    """``prepare`` of each item, in order, at most ``depth`` made ahead by threads.

    Closing the iterator cancels what has not begun. ``workers`` 0 works in the caller.
    """
    if workers == 0:
        yield from map(prepare, items)
        return
    waiting: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="rap-prepare")
    try:
        rest = iter(items)
        for item in rest:
            waiting.append(pool.submit(prepare, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(slots=True)
class Batch:
    """Jobs that are to be scored together. Its totals grow with each job: another one costs
    the same however many there are."""

    jobs: list[Job] = field(default_factory=list)
    tokens: int = 0
    """Of their prompts with the image, and of the responses they already hold."""
    longest: int = 0
    """Tokens of the longest prompt with the image, and without it."""
    longest_blind: int = 0

    def __len__(self) -> int:
        return len(self.jobs)

    def add(self, job: Job) -> None:
        image, blind = (0 if p is None else len(p) for p in (job.image, job.blind))
        self.jobs.append(job)
        self.tokens += image
        self.longest = max(self.longest, image)
        self.longest_blind = max(self.longest_blind, blind)

    @property
    def padded_tokens(self) -> int:
        """Of their prompts with and without the image, each padded to the longest."""
        return len(self.jobs) * (self.longest + self.longest_blind)


def cut(jobs: Iterable[Job], full: Callable[[Batch], bool]) -> Iterator[list[Job]]:
    """The jobs in the order given, as many at a time as it takes to be ``full``."""
    batch = Batch()
    for job in jobs:
        batch.add(job)
        if full(batch):
            yield batch.jobs
            batch = Batch()
    if batch:
        yield batch.jobs
