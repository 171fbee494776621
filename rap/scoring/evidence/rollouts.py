"""Evidence ``rollouts``: completions with and without the image, graded (the paper's).

Source: arXiv 2506.04755, CDE, ACE and DRM. Which completion says what is stored whole, so
that another checker needs no model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...config import ScoreConfig
from ...model.rollouts import ARM_TEXT, BLIND_ARM, IMAGE_ARM, Completion
from ...rewards.functions import Response
from ...samples.sample import Sample
from ...samples.text import clean
from ..jobs import Job
from ..scorer import Scorer
from .base import PSI, Evidence, prepare_arms

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...model.driver import ModelDriver


class Rollouts(Evidence):
    """m1 completions with the image, m0 without, and psi of a correct one."""

    name = "rollouts"
    columns = ("c1", "m1", "c0", "m0", *PSI, "n_drawn", "n_cut")

    def prepare(
        self,
        job: Job,
        sample: Sample,
        images: list[Image],
        other: list[Image] | None,
        driver: ModelDriver,
        config: ScoreConfig,
    ) -> None:
        prepare_arms(job, sample, images, other, driver)

    def score(self, scorer: Scorer, jobs: list[Job]) -> None:
        """M0 completions without the image, M1 with it, one forward for psi.

        All completions of a batch are sampled together, M rows a sample; psi is read
        off the first completion, by number, that the checker accepts.
        """
        config = scorer.config
        for arm, m in ((BLIND_ARM, config.m0), (IMAGE_ARM, config.m1)):
            failures: Failures = {}
            draw(scorer, jobs, arm, range(m), failures)
            sum_up(jobs, arm, failures)
        traced = []
        for job in jobs:
            if not job.alive:
                continue
            if can_be_kept(*(job.row[name] for name in ("c1", "m1", "c0", "m0"))):
                traced.append(job)
        read_psi(scorer, traced)


Failures = dict[int, dict[str, str]]
"""Why completions could not be graded: {``id(job)``: {code: message}}."""


def draw(
    scorer: Scorer, jobs: Sequence[Job], arm: str, numbers: range, failures: Failures
) -> None:
    """Sample and grade the completions of these numbers of each job that is alive; they go
    to ``job.rollouts``."""
    going = [job for job in jobs if job.alive]
    drawn = scorer.generate(going, arm, numbers) if numbers else {}
    for job in going if numbers else ():
        if job.alive:
            why = failures.setdefault(id(job), {})
            _grade(scorer, job, arm, numbers, drawn[id(job)], why)


def sum_up(jobs: Sequence[Job], arm: str, failures: Failures) -> None:
    """Counts of the completions sampled so far go to c1, m1 or c0, m0."""
    for job in jobs:
        if job.alive:
            _sum_up(job, arm, failures.get(id(job), {}))


def read_psi(scorer: Scorer, jobs: Sequence[Job]) -> None:
    """psi of the first completion with the image, by number, that was accepted."""
    for job in jobs:
        chosen = next(r for r in job.rollouts if r["arm"] == IMAGE_ARM and r["correct"])
        job.row["truncated"] = chosen["finish_reason"] == "length"
        if scorer.reads_psi:
            scorer.respond(job, ("image",), chosen["token_ids"])
    if scorer.reads_psi:
        for batch in scorer.batches(jobs):
            scorer.psi(batch, scorer.forward(batch, "image", attention=True))


def _grade(
    scorer: Scorer,
    job: Job,
    arm: str,
    numbers: range,
    drawn: Sequence[Completion],
    failures: dict[str, str],
) -> None:
    """One row per completion; why some could not be graded goes to ``failures``. A reward
    function is called once, for all of these that hold text."""
    assert scorer.checker is not None  # evidence rollouts has one
    said = [_response(one) for one in drawn if one.text.strip()]
    with scorer.watch.span("checking"):
        verdicts = iter(scorer.checker.check_group(job.sample, said, arm=arm))
    for number, completion in zip(numbers, drawn, strict=True):
        if completion.text.strip():
            verdict = next(verdicts)
            ok, code = verdict.correct, verdict.code
            if ok is None:
                failures.setdefault(str(code), verdict.message or "")
        else:
            ok, code = False, "empty_response"
        job.rollouts.append(_rollout_row(job, arm, number, completion, ok, code))


def _response(completion: Completion) -> Response:
    return Response(
        completion.text,
        completion.token_ids or (),
        finished=completion.finish_reason != "length",
    )


def counts(job: Job, arm: str) -> tuple[int, int, int]:
    """(accepted, graded, sampled) completions of an arm."""
    seen = [r["correct"] for r in job.rollouts if r["arm"] == arm]
    return seen.count(True), len(seen) - seen.count(None), len(seen)


def _sum_up(job: Job, arm: str, failures: dict[str, str]) -> None:
    """c and m of an arm, or the quarantine of a job that has none to count.

    An empty completion counts as wrong, as in any reward; if it were left out, a sample
    with one right answer and four empty ones would count as solved. Only if all completions
    with the image are empty is the sample quarantined. A completion that the checker
    could not grade is not counted.
    """
    correct, judged, drawn = counts(job, arm)
    n = "1" if arm == IMAGE_ARM else "0"
    job.row |= {f"c{n}": correct, f"m{n}": judged}
    codes = [r["code"] for r in job.rollouts if r["arm"] == arm]
    if codes.count("empty_response") == drawn and arm == IMAGE_ARM:
        job.quarantine("model", "empty_response", f"all {drawn} completions are empty")
    elif judged == 0:
        code = next(iter(failures)) if len(failures) == 1 else "few_rollouts"
        said = "; ".join(failures.values())
        message = f"none of {drawn} completions {ARM_TEXT[arm]} could be graded: {said}"
        job.quarantine("check", code, message)


def can_be_kept(c1: int, m1: int, c0: int, m0: int) -> bool:
    """Whether any later choice may keep this sample, so that psi is worth a forward.

    Needs one right answer with the image, and either D > 0 (no rule keeps a sample the
    image does not help) or a difficulty inside (0, 1).
    """
    return c1 >= 1 and (c1 * m0 > c0 * m1 or c1 < m1)


def _rollout_row(
    job: Job, arm: str, number: int, c: Completion, correct: bool | None, code: str | None
) -> dict[str, Any]:
    return {
        "id": job.row["id"],
        "index": job.row["index"],
        "arm": arm,
        "number": number,
        "text": clean(c.text, sys.maxsize),
        "token_ids": None if c.token_ids is None else list(c.token_ids),
        "finish_reason": c.finish_reason,
        "seed": c.seed,
        "correct": correct,
        "code": code,
    }


EVIDENCE = Rollouts()
