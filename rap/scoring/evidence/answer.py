"""Evidence ``answer``: two teacher-forced forward passes over the reference answer.

Source: arXiv 2506.04755, CDE, with p(answer) in place of a pass rate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...config import ScoreConfig
from ...samples.sample import Sample
from ..jobs import Job, answer_tokens
from ..rounding import significant
from ..scorer import DIVERGENCES, Scorer
from .base import PSI, Evidence, prepare_arms

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...model.driver import ModelDriver


def probabilities(*arms: str) -> tuple[str, ...]:
    """Columns of p(answer) with ("1") or without ("0") the image: the product over its
    tokens, its logarithm, and the mean logarithm per token (length-normalised), nats."""
    names = ("p_answer", "logp_answer", "logp_mean")
    return tuple(f"{name}{arm}" for arm in arms for name in names)


class Answer(Evidence):
    """p(answer) with and without the image."""

    name = "answer"
    columns = (*probabilities("1", "0"), *DIVERGENCES, *PSI)

    def prepare(
        self,
        job: Job,
        sample: Sample,
        images: list[Image],
        other: list[Image] | None,
        driver: ModelDriver,
        config: ScoreConfig,
    ) -> None:
        prefix, response = answer_tokens(driver, sample, config)
        prepare_arms(job, sample, images, other, driver, response, prefix)

    def score(self, scorer: Scorer, jobs: list[Job]) -> None:
        for batch in scorer.batches(jobs):
            logp = scorer.compare_arms(batch)
            for job in batch:
                if job.alive:
                    for arm in ("1", "0"):
                        put_answer(job, arm, logp[id(job)][arm])


def put_answer(job: Job, arm: str, logp: tuple[float, int]) -> None:
    """The columns of ``probabilities``. logp: (mean over the tokens, number of them)."""
    mean, n = significant(logp[0]), logp[1]
    total = significant(logp[0] * n)
    job.row |= {
        f"logp_mean{arm}": mean,
        f"logp_answer{arm}": total,
        f"p_answer{arm}": math.exp(total),
    }


EVIDENCE = Answer()
