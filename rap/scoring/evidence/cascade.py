"""Evidence ``cascade``: p(answer) for every sample, completions only where they decide.

1. ``answer`` for the whole pool (a pass of its own): two forwards a sample.
2. Completions with the image, for the share of the pool with the largest p (1 - p)
   (``rap.scoring.plan``): two, then one at a time, until some are right and some are wrong,
   or m1 are sampled.
3. Completions without the image, only for those: one or more, one at a time, until the sign
   of D is settled, or m0 are sampled. Settled: P(p1 > p0) is at least ``cascade_sure``, or
   at most 1 - ``cascade_sure``, under the Beta posteriors of ``rap.scores.posterior``,
   p(answer) counted as one completion, which needs no other sample.
psi is read off a right completion of the samples that stage 3 is for: no other can be kept.

Each decision is made of one sample's own completions, whose seeds have names: batches,
restarts and other samples change none.

Source: METHOD.md section 6; arXiv 2506.04755 for CDE, ACE and difficulty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...config import ScoreConfig
from ...model.rollouts import BLIND_ARM, IMAGE_ARM
from ...samples.sample import Sample
from ...scores.posterior import DEFAULT_WEIGHT, Arm, prob_above
from ..jobs import Job
from ..scorer import DIVERGENCES, Scorer
from .answer import probabilities
from .base import PSI, Evidence, prepare_arms
from .rollouts import Failures, counts, draw, read_psi, sum_up

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...model.driver import ModelDriver

FIRST_LOOK = 2
"""Completions with the image that are sampled together: fewer cannot be mixed."""


class Cascade(Evidence):
    """Stages 2 and 3; stage 1 is the evidence that ``first`` names."""

    name = "cascade"
    first = "answer"
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
        prepare_arms(job, sample, images, other, driver)

    def score(self, scorer: Scorer, jobs: list[Job]) -> None:
        config = scorer.config
        failures: Failures = {}
        for numbers in looks(config.m1, FIRST_LOOK):
            draw(scorer, [j for j in jobs if not _mixed(j)], IMAGE_ARM, numbers, failures)
        sum_up(jobs, IMAGE_ARM, failures)
        for job in jobs:
            if job.alive:
                job.row |= {"c0": 0, "m0": 0, "decided_by": "image"}
        going = [job for job in jobs if job.alive and _mixed(job)]
        _text_arm(scorer, going, config.m0, config.cascade_sure)
        read_psi(scorer, [job for job in going if job.alive])


def _text_arm(scorer: Scorer, jobs: Sequence[Job], m0: int, sure: float) -> None:
    """Stage 3 of jobs whose completions with the image are mixed."""
    failures: Failures = {}
    going = list(jobs)
    for numbers in looks(m0, 1):
        going = [job for job in going if job.alive]
        if numbers.start:  # p(answer) alone settles nothing
            going = [job for job in going if not _settled(job, sure)]
        draw(scorer, going, BLIND_ARM, numbers, failures)
    sum_up(jobs, BLIND_ARM, failures)
    for job in jobs:
        if job.alive:
            job.row["decided_by"] = "text"


def looks(m: int, first: int) -> Iterator[range]:
    """The numbers of m completions: the first few together, then one at a time."""
    yield range(min(first, m))
    for number in range(first, m):
        yield range(number, number + 1)


def _mixed(job: Job) -> bool:
    """Some completions with the image are right and some are wrong."""
    correct, judged, _ = counts(job, IMAGE_ARM)
    return 0 < correct < judged


def _settled(job: Job, sure: float) -> bool:
    """Whether the sign of D is probable enough, after the completions so far."""
    arms = []
    for arm, name in ((IMAGE_ARM, "p_answer1"), (BLIND_ARM, "p_answer0")):
        correct, judged, _ = counts(job, arm)
        q = job.row.get(name)
        said = np.array([np.nan if q is None else q])
        arms.append(Arm(np.array([correct]), np.array([judged]), said, DEFAULT_WEIGHT))
    with_image, without = arms
    p = float(prob_above(with_image, without)[0])
    return not 1 - sure < p < sure


EVIDENCE = Cascade()
