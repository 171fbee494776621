"""Evidence ``cascade``: p(answer) for every sample, completions only where they decide.

Of each sample, from its own images and prompts, which are read once:

1. p(answer) with and without the image, two forwards.
2. What that says, and what completions have said in the rounds before (``Job.asking``,
   ``rap.scoring.plan``), decides whether completions are asked for. Of the pilot
   (``cascade_pilot``, told by the sample's id) `PILOT` are, whatever it says.
3. Completions with the image, then without it, one at a time, as long as they can decide
   (``rap.scoring.asking``).
psi is read off the first right completion with the image, of every sample that has one.

Each decision rests on ``asking`` and on one sample's own scores and completions, whose
seeds have names: batches, restarts and processes change none.

Source: METHOD.md section 6; arXiv 2506.04755 for CDE, ACE and difficulty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...config import ScoreConfig
from ...model.rollouts import BLIND_ARM, IMAGE_ARM
from ...samples.sample import Sample
from ...scores.posterior import Arm, Prior
from ..asking import FIRST_LOOK, Asking, in_pilot, looks
from ..jobs import Job, answer_tokens
from ..scorer import DIVERGENCES, Scorer
from .answer import probabilities, put_answer
from .base import PSI, Evidence, prepare_arms
from .rollouts import Failures, counts, draw, read_psi, sum_up

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...model.driver import ModelDriver

PILOT = (FIRST_LOOK, 1)
"""Completions with and without the image of a sample of the pilot, at least."""


class Cascade(Evidence):
    """See the module's docstring."""

    name = "cascade"
    staged = True
    columns = (
        *probabilities("1", "0"),
        *DIVERGENCES,
        "c1",
        "m1",
        "c0",
        "m0",
        *PSI,
        "n_drawn",
        "n_cut",
        "decided_by",
    )

    def prepare(
        self,
        job: Job,
        sample: Sample,
        images: list[Image],
        other: list[Image] | None,
        driver: ModelDriver,
        config: ScoreConfig,
    ) -> None:
        prefix, answer = answer_tokens(driver, sample, config)
        prepare_arms(job, sample, images, other, driver)
        job.answer = driver.prepare(sample, images, answer, prefix=prefix, like=job.image)
        job.blind_answer = driver.prepare(
            sample, other, answer, prefix=prefix, like=job.blind
        )

    def score(self, scorer: Scorer, jobs: list[Job]) -> None:
        waiting: list[Job] = []
        for part in scorer.parts(jobs):
            _answer(scorer, part)
            asked = _asked(scorer.config, [job for job in part if job.alive])
            if waiting and not scorer.fit(waiting + asked):
                _ask(scorer, waiting)
                waiting = []
            chosen = set(map(id, asked))
            waiting += asked
            scorer.hold(waiting, [job for job in part if id(job) not in chosen])
        _ask(scorer, waiting)


def _answer(scorer: Scorer, jobs: list[Job]) -> None:
    """p(answer) of all; completions go on from the prompts that are read here."""
    for which in ("image", "blind"):
        scorer.read(jobs, which)
    for batch in scorer.batches(jobs):
        logp = scorer.compare_arms(batch, ("answer", "blind_answer"), attention=False)
        for job in batch:
            if job.alive:
                for which in ("1", "0"):
                    put_answer(job, which, logp[id(job)][which])
                job.row["decided_by"] = "answer"


def _asked(config: ScoreConfig, jobs: list[Job]) -> list[Job]:
    """Those of which completions are asked for."""
    if not jobs:
        return []
    asking, ids = _asking(jobs), [job.row["id"] for job in jobs]
    drawn = asking.drawn(ids, *asking.priors([job.row for job in jobs])).tolist()
    return [
        job
        for job, name, on in zip(jobs, ids, drawn, strict=True)
        if on or in_pilot(config, name)
    ]


def _ask(scorer: Scorer, asked: list[Job]) -> None:
    """Their completions, then psi."""
    if not asked:
        return
    config, asking = scorer.config, _asking(asked)
    one, zero = asking.priors([job.row for job in asked])
    pilot = {id(job) for job in asked if in_pilot(config, job.row["id"])}
    prior = {id(job): np.array([i]) for i, job in enumerate(asked)}
    rule = asking.rule

    def arms(of: Sequence[Job]) -> tuple[Arm, Arm]:
        rows = np.concatenate([prior[id(job)] for job in of])
        return _arm(of, IMAGE_ARM, one.take(rows)), _arm(of, BLIND_ARM, zero.take(rows))

    def worth(of: Sequence[Job], *, unsettled: bool) -> list[Job]:
        """Those of which another completion can decide something."""
        if not of:
            return []
        going = rule.worth(*arms(of))
        if unsettled:
            going &= rule.unsettled(*arms(of))
        return [job for job, on in zip(of, going.tolist(), strict=True) if on]

    image: Failures = {}
    for numbers in looks(config.m1, FIRST_LOOK):
        going = [j for j in asked if not _mixed(j) and _at(j, IMAGE_ARM, numbers)]
        if numbers.start:
            going = worth(going, unsettled=False)
        draw(scorer, going, IMAGE_ARM, numbers, image)
    sum_up(asked, IMAGE_ARM, image)
    text: Failures = {}
    for numbers in looks(config.m0, 1):
        here = [job for job in asked if _at(job, BLIND_ARM, numbers)]
        forced = [j for j in here if id(j) in pilot and numbers.start < PILOT[1]]
        rest = [j for j in here if _mixed(j) and j not in forced]
        draw(scorer, forced + worth(rest, unsettled=True), BLIND_ARM, numbers, text)
    for job in asked:
        if job.alive:
            job.row |= {"c0": 0, "m0": 0, "decided_by": "image"}
    said = [job for job in asked if counts(job, BLIND_ARM)[2]]
    sum_up(said, BLIND_ARM, text)
    for job in said:
        if job.alive:
            job.row["decided_by"] = "pilot" if id(job) in pilot else "text"
    read_psi(scorer, [j for j in asked if j.alive and counts(j, IMAGE_ARM)[0] > 0])
    scorer.hold([], asked)


def _asking(jobs: Sequence[Job]) -> Asking:
    """That of their round."""
    asking = jobs[0].asking
    assert asking is not None  # filling.Run gives it to every job of a plan
    return asking


def _mixed(job: Job) -> bool:
    """Some completions with the image are right and some are wrong."""
    correct, judged, _ = counts(job, IMAGE_ARM)
    return 0 < correct < judged


def _at(job: Job, arm: str, numbers: range) -> bool:
    """These completions are the next ones of a job."""
    return job.alive and counts(job, arm)[2] == numbers.start


def _arm(jobs: Sequence[Job], arm: str, prior: Prior) -> Arm:
    found = np.array([counts(job, arm)[:2] for job in jobs], np.int64)
    return Arm(found[:, 0], found[:, 1], prior)


EVIDENCE = Cascade()
