"""Evidence ``cascade``: p(answer) for every sample, completions only where they decide.

1. A pass over the whole pool: p(answer) with and without the image, two forwards a sample.
   A random share of it (``cascade_pilot``, told by the sample's id), the pilot, gets
   `PILOT` completions too.
2. The plan (``rap.scoring.plan``), from that pass alone: how likely a completion is right,
   given what the two forwards say (``rap.scores.prior``, fitted to the pilot), so a prior
   of both pass rates for each sample; and a floor on the keep-probability, the lowest that
   the bill allows (``cascade_completions``).
3. Completions with the image, then without it, of the samples above the floor, one at a
   time, as long as they can decide (``rap.scoring.asking``).
psi is read off the first right completion with the image, of every sample that has one.

Each decision rests on the plan and on one sample's own completions, whose seeds have names:
batches, restarts and processes change none.

Source: METHOD.md section 6; arXiv 2506.04755 for CDE, ACE and difficulty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...config import ScoreConfig
from ...model.rollouts import BLIND_ARM, IMAGE_ARM, row_seed
from ...samples.sample import Sample
from ...scores.posterior import Arm, Prior
from ..asking import FIRST_LOOK, Rule, looks
from ..jobs import Job, answer_tokens
from ..scorer import DIVERGENCES, Scorer
from .answer import probabilities, put_answer
from .base import PSI, Evidence, prepare_arms
from .rollouts import Failures, counts, draw, read_psi, sum_up

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...model.driver import ModelDriver

PILOT = (FIRST_LOOK, 1)
"""Completions with and without the image of a sample of the pilot, at most."""


class Cascade(Evidence):
    """Stages 1 and 3; ``Job.outlook`` says what the plan holds for a job of stage 3."""

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
        first = [job for job in jobs if job.outlook is None]
        if first:
            _first_stage(scorer, first)
        _ask(scorer, [job for job in jobs if job.outlook is not None])
        right = [j for j in jobs if j.alive and counts(j, IMAGE_ARM)[0] > 0]
        read_psi(scorer, [job for job in right if job.row.get("log_psi") is None])


def in_pilot(config: ScoreConfig, sample_id: str) -> bool:
    """Whether a sample is of the pilot: told by its id and the seed alone."""
    share = row_seed(config.seed, sample_id, "pilot", 0) / 2.0**63
    return share < config.cascade_pilot


def _first_stage(scorer: Scorer, jobs: list[Job]) -> None:
    """Completions of the pilot, then p(answer) of all: a prompt is read once for both."""
    config = scorer.config
    pilot = [job for job in jobs if in_pilot(config, job.row["id"])]
    for arm, m in zip((IMAGE_ARM, BLIND_ARM), PILOT, strict=True):
        failures: Failures = {}
        most = config.m1 if arm == IMAGE_ARM else config.m0
        draw(scorer, pilot, arm, range(min(m, most)), failures)
        sum_up(pilot, arm, failures)
    for batch in scorer.batches([job for job in jobs if job.alive]):
        logp = scorer.compare_arms(batch, ("answer", "blind_answer"), attention=False)
        for job in batch:
            if job.alive:
                for which in ("1", "0"):
                    put_answer(job, which, logp[id(job)][which])


def _ask(scorer: Scorer, jobs: list[Job]) -> None:
    """Stage 3: all have an outlook."""
    config = scorer.config
    image: Failures = {}
    for numbers in looks(config.m1, FIRST_LOOK):
        going = [j for j in jobs if not _mixed(j) and _at(j, IMAGE_ARM, numbers)]
        draw(scorer, _worth(going, config), IMAGE_ARM, numbers, image)
    sum_up(jobs, IMAGE_ARM, image)
    for job in jobs:
        if job.alive and not counts(job, BLIND_ARM)[2]:
            job.row |= {"c0": 0, "m0": 0, "decided_by": "image"}
    text: Failures = {}
    for numbers in looks(config.m0, 1):
        going = [j for j in jobs if _mixed(j) and _at(j, BLIND_ARM, numbers)]
        draw(scorer, _worth(going, config, unsettled=True), BLIND_ARM, numbers, text)
    asked = [job for job in jobs if counts(job, BLIND_ARM)[2]]
    sum_up(asked, BLIND_ARM, text)
    for job in asked:
        if job.alive:
            job.row["decided_by"] = "text"


def _mixed(job: Job) -> bool:
    """Some completions with the image are right and some are wrong."""
    correct, judged, _ = counts(job, IMAGE_ARM)
    return 0 < correct < judged


def _at(job: Job, arm: str, numbers: range) -> bool:
    """These completions are the next ones of a job."""
    return job.alive and counts(job, arm)[2] == numbers.start


def _worth(
    jobs: Sequence[Job], config: ScoreConfig, *, unsettled: bool = False
) -> list[Job]:
    """Those of which another completion can decide something."""
    if not jobs:
        return []
    outlooks = [job.outlook for job in jobs if job.outlook is not None]
    one = _arm(jobs, IMAGE_ARM, [outlook.one for outlook in outlooks])
    zero = _arm(jobs, BLIND_ARM, [outlook.zero for outlook in outlooks])
    rule = Rule(config.m1, config.m0, config.cascade_sure, outlooks[0].floor)
    going = rule.worth(one, zero)
    if unsettled:
        going &= rule.unsettled(one, zero)
    return [job for job, on in zip(jobs, going.tolist(), strict=True) if on]


def _arm(jobs: Sequence[Job], arm: str, priors: Sequence[tuple[int, int]]) -> Arm:
    found = np.array([counts(job, arm)[:2] for job in jobs], np.int64)
    steps = np.array(priors, np.int64)
    return Arm(found[:, 0], found[:, 1], Prior(steps[:, 0], steps[:, 1]))


EVIDENCE = Cascade()
